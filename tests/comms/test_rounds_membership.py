"""Rounds whose replicas come late, die, come back, join and leave, told as stories."""

from __future__ import annotations

import math

import pytest

from comms.agreement import CatchUp, Offer, Proposal, RoundPlan
from comms.round_deadlines import next_deadline_s
from comms.run_state import Heard, Phase
from tests.comms.stories import contributors, left_out, open_world, phase, working
from tests.comms.world import World, rules, sha

# ---- stragglers and newcomers ----


def test_a_straggler_is_left_out_told_of_the_commit_and_takes_part_again() -> None:
    world = working()
    lease = world["c"].plan
    world.act(work="ab")
    world.pass_time(19)
    assert phase(world) is Phase.WORK
    world.pass_time(1)
    assert left_out(world) == {"c": "no report within 20 s of the first"}
    world.act(work="")
    assert contributors(world) == ["ab"]
    assert lease is not None
    assert world.state.leases["a"] == lease.lease, "what c did not report on is granted again"
    world.work("c")
    world.act()
    assert phase(world) is Phase.DONE
    assert world["c"].round == 3
    assert "c" in contributors(world)[-1]
    assert world.summaries[0].absent == ({"replica": "c", "reason": "no report within 20 s of the first"},)


def test_a_round_waits_for_a_straggler_that_it_needs() -> None:
    world = working(min_replicas=3)
    world.act(work="ab")
    world.pass_time(500)
    world.act()
    assert contributors(world)[0] == "abc"


def test_a_newcomer_enters_a_young_round_and_watches_an_older_one() -> None:
    for reported, first_round in (("", "abc"), ("a", "ab")):
        world = World(rules(rounds=2))
        world.start("a", "b")
        world.act(work="")
        world.pass_time(60)
        world.act(work=reported)
        world.start("c")
        world.act()
        assert contributors(world) == [first_round, "abc"]


@pytest.mark.parametrize(("age_s", "enters"), [(30, True), (40, False)])
def test_who_comes_late_enters_only_while_the_others_lose_less_by_that_than_itself_by_watching(
    age_s: float, enters: bool
) -> None:
    """Two work, and a round takes 100 s: entering at age t costs them 2 t, and watching costs the newcomer 100 - t."""
    world = World(rules(rounds=3))
    world.start("a", "b")
    world.act(work="")
    world.pass_time(60)  # nobody waits for c any longer
    world.act(work="")
    world.pass_time(100)
    world.work("a")
    world.work("b")
    world.act(work="")
    world.pass_time(age_s)
    world.start("c")
    world.act(work="")
    world.act()
    assert contributors(world) == ["ab", "abc" if enters else "ab", "abc"]


def test_a_restarted_coordinator_does_not_wait_for_those_who_had_gone() -> None:
    world = working(rounds=2)
    world.crash("c")
    world.pass_time(6)
    world.restart()
    world.connect("a")
    world.connect("b")
    world.act()
    assert contributors(world) == ["ab", "ab"]
    assert phase(world) is Phase.DONE


def test_a_newcomer_enters_a_round_that_lacks_replicas_also_one_that_only_watched_before() -> None:
    world = World(rules())
    world.start("a", "b")
    world.act(work="")
    world.pass_time(60)
    world.act(work="a")
    world.start("c")
    world.act(work="a")
    assert world["c"].mode == "follow"
    world.crash("b")
    world.pass_time(6)
    world.act()
    assert contributors(world)[0] == "ac"


# ---- replicas die ----


@pytest.mark.parametrize("mode", ["work", "agree"])
def test_a_round_goes_on_without_a_member_that_dies(mode: str) -> None:
    world = working()
    world.act(work="c" if mode == "agree" else "")
    world.crash("c")
    world.act(work="ab")
    assert not world.history
    world.pass_time(6)
    world.act()
    assert contributors(world)[0] == ("ab" if mode == "work" else "abc"), "what it reported can still be had"
    assert phase(world) is Phase.DONE


def test_a_member_that_dies_before_it_acknowledges_is_not_waited_for() -> None:
    world = working()
    for name in "abc":
        world.work(name)
        world.say(name)
    world.crash("c")
    world.act()
    assert not world.history
    world.pass_time(6)
    world.act()
    assert contributors(world) == ["abc", "ab", "ab"]


def test_a_member_that_dies_before_it_applies_the_last_round_does_not_keep_the_run_open() -> None:
    world = working("ab", rounds=1)
    for name in "ab":
        world.work(name)
        world.act_once(name)
    while not world.history:
        world.act_once("a")
        world.act_once("b")
    world.crash("b")
    world.act()
    assert phase(world) is Phase.ENDING
    world.pass_time(6)
    world.act()
    assert phase(world) is Phase.DONE
    assert world["a"].mode == "ended"


def test_a_member_started_again_gets_the_lease_that_it_had() -> None:
    world = working()
    plan = world["b"].plan
    world.crash("b")
    world.start("b")
    world.act()
    assert world["b"].heard[0] == plan
    assert contributors(world) == ["abc"] * 3


def test_a_member_started_again_in_the_middle_of_the_agreement_hears_the_proposal() -> None:
    world = working()
    world.act(work="ab")
    world.work("c")
    world.say("c")
    world.crash("c")
    world.start("c")
    world.say("c")
    assert [type(message) for message in world["c"].inbox] == [RoundPlan, Proposal]
    world.act()
    assert contributors(world) == ["abc"] * 3


def test_a_member_resumed_from_an_older_round_catches_up_and_takes_part() -> None:
    world = World(rules(rounds=4))
    world["b"].save_every = 3
    world.start(*"abc")
    while len(world.history) < 2:
        for name in "abc":
            world.act_once(name)
    world.crash("b")
    world.start("b")
    assert world["b"].round == 0
    world.act()
    assert CatchUp(2) in world["b"].heard
    assert contributors(world) == ["abc"] * 4


def test_a_member_that_acknowledged_and_fell_back_is_not_planned_before_it_has_caught_up() -> None:
    """It was in the roster of the next round, was told of its lease while it could not use it, and never again."""
    world = World(rules("ab", rounds=3))
    world["b"].save_every = 5
    world.start(*"ab")
    while len(world.history) < 1:
        world.act_once("a")
        world.act_once("b")
    while not (phase(world) is Phase.AGREE and "b" in world.state.acknowledged):
        world.act_once("b") or world.act_once("a")
    world.crash("b")
    world.start("b")
    world.say("b")
    world.act()
    assert phase(world) is Phase.DONE


def test_a_paused_member_hears_of_the_commit_that_it_slept_through() -> None:
    """Its stream outlived the pause, so it never joined again, and waited for ever."""
    world = working()
    for name in "abc":
        world.work(name)
        world.say(name)
    world["c"].awake = False
    world.act()
    world.pass_time(6)
    world.act(work="")
    assert len(world.history) == 1
    world["c"].awake = True
    world.pass_time(2)
    world.act()
    assert phase(world) is Phase.DONE
    assert world["c"].round == 3


def test_a_member_that_only_missed_the_commit_gets_it_when_it_comes_back() -> None:
    world = working(rounds=1)
    for name in "abc":
        world.work(name)
        world.say(name)
    world.act_once("c")
    world.act_once("c")
    world.cut("c")
    world.act()
    assert len(world.history) == 1
    world.connect("c")
    world.act()
    assert world["c"].round == 1
    assert phase(world) is Phase.DONE


@pytest.mark.parametrize(("noticed", "seconds"), [(True, 3.0), (False, 5.0)])
def test_a_member_is_dead_soon_after_its_stream_broke_and_later_if_nobody_noticed(
    noticed: bool, seconds: float
) -> None:
    world = working()
    world.crash("c", noticed=noticed)
    world.act()
    world.pass_time(seconds - 0.01)
    world.act()
    assert not world.history
    world.pass_time(0.01)
    world.act()
    assert contributors(world)[0] == "ab"


def test_a_stream_that_is_opened_anew_in_time_changes_nothing() -> None:
    world = working()
    world.cut("c")
    world.pass_time(2.9)
    world.connect("c")
    world.act(work="ab")
    world.pass_time(3)
    assert not world.history
    world.act()
    assert contributors(world) == ["abc"] * 3


def test_a_member_that_leaves_is_not_waited_for() -> None:
    world = working()
    world.leave("c")
    world.act()
    assert contributors(world) == ["ab"] * 3
    assert left_out(world) == {"c": "has to go"}


def test_a_run_without_its_members_fails_within_its_deadlines() -> None:
    for acted in ("", "abc"):
        world = working()
        for name in acted:
            world.work(name)
            world.say(name)
        world.crash(*"abc")
        world.pass_time(5 + 60 + 10)
        assert phase(world) is Phase.FAILED
        assert next_deadline_s(world.state, world.now_s) == math.inf


# ---- who joins, and who goes ----


def test_a_newcomer_begins_with_a_snapshot_and_takes_part() -> None:
    world = open_world()
    world.start("x")
    world.act(work="")
    sources = [source for message in world["x"].heard if isinstance(message, CatchUp) for source in message.snapshots]
    assert sources[0].offer.round == 2
    assert [holder.replica for holder in sources[0].holders] == ["a", "b"]
    world.act()
    assert phase(world) is Phase.DONE
    assert contributors(world)[-1] == "abx"
    assert len({replica.theta_digest for replica in world.replicas.values()}) == 1


def test_a_newcomer_that_is_not_far_behind_replays_the_rounds() -> None:
    world = open_world(most_replayed_rounds=2)
    world.start("x")
    world.act()
    assert not any(message.snapshots for message in world["x"].heard if isinstance(message, CatchUp))
    assert contributors(world)[-1] == "abx"


def test_there_is_room_for_so_many_and_who_goes_leaves_room() -> None:
    world = open_world(most_replicas=3)
    world.start("x", "y")
    world.act(work="")
    assert world["y"].refused.endswith("exchange.most_replicas = 3 leaves no room for another")
    world.leave("x")
    world.act(work="")
    world["y"].refused = ""
    world.start("y")
    world.act()
    assert world["y"].refused.endswith("leaves no room for another"), "x may be back in this round"
    assert phase(world) is Phase.DONE


def test_who_joined_and_died_makes_room_in_the_next_round() -> None:
    world = open_world(most_replicas=3, rounds=9)
    world.start("x")
    world.act(work="")
    world.crash("x")
    world.pass_time(4)
    while len(world.history) < 4:
        for name in "ab":
            world.act_once(name)
    world.start("y")
    world.act()
    assert contributors(world)[-1] == "aby"


def test_a_closed_run_lets_nobody_in() -> None:
    world = open_world(most_replicas=0)
    world.start("x")
    world.act()
    assert world["x"].refused.startswith("replica 'x' is none of this run's replicas (a, b)")


def test_what_leaves_before_anybody_fetched_it_takes_its_report_along() -> None:
    world = working()
    world.act(work="c")
    world.leave("c")
    world.act()
    assert contributors(world)[0] == "ab"
    assert world.state.attempt == 1


def test_a_snapshot_of_what_few_held_is_not_passed_on() -> None:
    world = open_world("abc")
    world.feed(Heard("a", Offer(2, sha("forged"), sha("index"), 100)))
    world.start("x")
    world.act()
    sources = [source for message in world["x"].heard if isinstance(message, CatchUp) for source in message.snapshots]
    assert all(holder.replica != "a" for source in sources for holder in source.holders if source.offer.round == 2)
    assert contributors(world)[-1] == "abcx"


def test_a_snapshot_is_asked_for_again_elsewhere_after_a_restart() -> None:
    world = open_world()
    world.restart()
    world.start("x")
    world.run_to_the_end()
    assert phase(world) is Phase.DONE
    assert world["x"].round == 6
