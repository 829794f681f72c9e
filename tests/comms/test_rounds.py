"""Rounds told as stories: who does what, and what becomes of it. `World` checks after every event what always holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from comms.agreement import Acknowledge, CatchUp, CommittedRound, Finish, Join, Proposal, Refusal, Report, RoundPlan
from comms.leases import Segment
from comms.round_deadlines import next_deadline_s
from comms.rounds import advance
from comms.run_state import Alive, Heard, Phase, RunState, Send, Ticked
from tests.comms.stories import contributors, left_out, open_world, phase, working
from tests.comms.world import CONFIG, CORPUS, World, rules, sha

# ---- everything goes well ----


def test_three_replicas_do_three_rounds() -> None:
    world = World(rules())
    world.start(*"abc")
    world.act()
    assert contributors(world) == ["abc"] * 3
    assert phase(world) is Phase.DONE
    assert all(replica.mode == "ended" and replica.round == 3 for replica in world.replicas.values())
    kinds = [type(message) for message in world["a"].heard]
    assert kinds == [RoundPlan, Proposal, CommittedRound] * 3 + [Finish]
    assert [summary.round for summary in world.summaries] == [1, 2, 3]
    assert all(summary.agreed and summary.absent == () for summary in world.summaries)
    assert world.state.tokens == 3 * 3 * 130
    assert next_deadline_s(world.state, world.now_s) == math.inf


def test_one_replica_alone_does_its_rounds() -> None:
    world = World(rules("a", min_replicas=1))
    world.start("a")
    world.act()
    assert contributors(world) == ["a", "a", "a"]


def test_the_manifest_is_in_the_order_of_names_whoever_reports_first() -> None:
    world = working()
    for names in ("c", "ca", "cab"):
        world.act(work=names)
    world.run_to_the_end()
    assert all([entry.replica for entry in committed.manifest] == list("aabbcc") for committed in world.history)


# ---- the beginning ----


def test_the_start_waits_for_all_until_the_deadline_then_goes_on_with_enough() -> None:
    world = World(rules())
    world.start("a", "b")
    world.act()
    world.pass_time(59)
    assert phase(world) is Phase.GATHER
    world.pass_time(1)
    assert phase(world) is Phase.WORK
    assert set(world.state.leases) == {"a", "b"}


def test_the_start_with_too_few_fails_at_the_deadline_and_says_what_to_do() -> None:
    world = World(rules())
    world.start("a")
    world.act()
    world.pass_time(60)
    world.act()
    assert phase(world) is Phase.FAILED
    assert world["a"].heard == [Finish(world.state.failure)]
    assert "round 1 has 1 replicas after exchange.gather_deadline_s = 60 s" in world.state.failure
    assert "exchange.min_replicas = 2" in world.state.failure


def test_a_failed_run_that_is_started_again_goes_on() -> None:
    world = working()
    world.crash("b", "c")
    world.pass_time(70)
    assert phase(world) is Phase.FAILED
    world.crash("a")
    world.restart(now_s=3.0)
    world.run_to_the_end()
    assert phase(world) is Phase.DONE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"replica": "x"}, "'x' is none of this run's replicas (a, b, c)"),
        ({"config_digest": "00" * 32}, "config 000000000000, the run has c0c0c0c0c0c0"),
        ({"corpus_digest": "00" * 32}, "corpus 000000000000, the run has d0d0d0d0d0d0"),
        ({"tokens_per_epoch": 0}, "an empty corpus"),
        ({"theta_digest": "00" * 32}, "begins with other parameters"),
        ({"applied_round": 2}, "stands at round 2, the run has committed 0"),
    ],
)
def test_a_replica_of_another_run_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    world = World(rules())
    world.start("a", "b")
    world.act()
    stranger = replace(world["c"].join, **change)
    state, [action] = advance(world.state, Heard(stranger.replica, stranger), world.now_s)
    assert state == world.state
    assert isinstance(action, Send)
    assert isinstance(action.message, Refusal)
    assert action.replica == stranger.replica
    assert repr(stranger.replica) in action.message.reason
    assert reason in action.message.reason


def test_who_has_not_joined_is_not_listened_to() -> None:
    world = working()
    before = world.state
    world.feed(Heard("x", Report(1, (), 1, 1.0)))
    world.feed(Alive("x"))
    assert world.state == before


# ---- windows ----


def test_what_a_contributor_did_not_get_to_comes_back() -> None:
    world = working(rounds=1)
    world["b"].trains = 0.25
    leases = dict(world.state.leases)
    world.act()
    [committed] = world.history
    assert committed.leases["a"] == leases["a"]
    assert sum(segment.num_tokens for segment in committed.leases["b"]) == 33
    assert world.summaries[0].tokens == {"a": 130, "b": 33, "c": 130}
    assert {entry.replica: entry.weight_tokens for entry in committed.manifest} == {"a": 130, "b": 33, "c": 130}


def test_a_rest_that_is_not_of_the_lease_leaves_its_replica_out() -> None:
    for unused in ((Segment(0, 0, 1),), (Segment(7, 0, 1),)):
        world = working()
        world.work("c")
        report = world["c"].outbox.pop()
        assert isinstance(report, Report)
        world["c"].outbox.append(replace(report, unused=unused))
        world.say("c")
        assert left_out(world)["c"].startswith("what it has left of its lease is none of it")
    world = working()
    world.work("c")
    report = world["c"].outbox.pop()
    assert isinstance(report, Report)
    world.feed(Heard("c", replace(report, unused=world.state.leases["c"])))
    assert left_out(world) == {"c": "it has trained on nothing of its lease"}


# ---- time ----


def test_a_deadline_is_awaited_and_met_to_the_bit() -> None:
    """x + d - d may be less than x: a member would still live when its deadline was over, and nobody woke again."""
    for number in range(200):
        now_s = number * 1000 / 7
        state, _ = advance(RunState(rules("a", min_replicas=1)), Heard("a", join("a")), now_s)
        deadline_s = next_deadline_s(state, now_s)
        state, _ = advance(state, Ticked(), deadline_s)
        assert next_deadline_s(state, deadline_s) > deadline_s
        assert state.short_since_s == deadline_s, "the only replica has just died"


def join(name: str) -> Join:
    return Join(name, "1", "", CONFIG, CORPUS, 1000, 0, sha())


@pytest.mark.parametrize("is_heard", [True, False])
def test_what_a_replica_made_of_a_round_is_in_its_line_though_its_stream_breaks(*, is_heard: bool) -> None:
    """Before or after it was heard: it is said again, behind a Join, which alone must not close the line."""
    world = working("ab", rounds=2)
    world["a"].loss, world["b"].loss = 1.0, 3.0
    while any(world[name].round == 0 for name in "ab"):
        for name in "ab":
            if world[name].round == 0:
                world.act_once(name)
    if is_heard:
        world.say("a")
    world.cut("a")
    world.say("b")
    world.connect("a")
    world.say("a")
    world.act()
    assert [summary.validation_loss for summary in world.summaries] == [2.0, 2.0]


def test_an_acknowledgement_that_is_lost_with_its_stream_is_asked_for_again() -> None:
    world = working("ab", rounds=1)
    while not any(isinstance(message, Acknowledge) for message in world["a"].outbox):
        for name in "ab":
            world.act_once(name)
    world.cut("a")
    world.connect("a")
    world.act()
    assert contributors(world) == ["ab"]
    assert left_out(world) == {}
    assert phase(world) is Phase.DONE


# ---- nobody works, nobody is left ----


def test_replicas_that_live_and_never_report_do_not_hold_a_run_for_ever() -> None:
    """A training thread was stuck while the heart went on beating: there was no first report to count from."""
    world = working()
    world.pass_time(999)
    assert phase(world) is Phase.WORK
    world.pass_time(1)
    assert left_out(world)["a"] == "no report within exchange.work_deadline_s = 1000 s"
    world.pass_time(60)
    assert phase(world) is Phase.FAILED
    assert "no report within exchange.work_deadline_s" in world.state.failure


def test_those_who_watched_take_a_round_over_when_all_who_had_part_in_it_are_gone() -> None:
    world = World(rules("abcd"))
    world.start("a", "b")
    world.act(work="")
    world.pass_time(60)
    world.act(work="")
    world.work("a")
    world.say("a")
    world.start("c", "d")
    world.act(work="")
    world.work("b")
    world.say("b")
    assert phase(world) is Phase.AGREE
    world.crash("a", "b")
    world.pass_time(20)
    world.act()
    assert contributors(world) == ["cd", "cd", "cd"]
    assert phase(world) is Phase.DONE


def test_a_member_behind_at_the_end_is_waited_for_as_long_as_it_gets_on() -> None:
    world = open_world("abc", rounds=4)
    world.crash("c")
    world["c"].saved = []
    world.pass_time(4)
    world.act(work="")
    world.start("c")
    while phase(world) is not Phase.ENDING:
        for name in "ab":
            world.act_once(name)
        if phase(world) is Phase.WORK:
            world.pass_time(0.5)
    world.say("c")
    world.hear("c")
    for _ in range(2):
        world.pass_time(11)
        assert phase(world) is Phase.ENDING
        world.act_once("c")
    world.act()
    assert phase(world) is Phase.DONE
    assert world["c"].mode == "ended"


def test_a_finished_run_that_is_started_again_serves_whoever_had_not_got_there() -> None:
    world = open_world("abc", rounds=3)
    world["c"].awake = False
    world.pass_time(6)
    world.act()
    world.pass_time(30)
    world.act()
    assert phase(world) is Phase.DONE
    assert world["c"].round == 2
    world["c"].awake = True
    world.crash("c")
    world.restart()
    assert phase(world) is Phase.GATHER
    world.start("a", "b", "c")
    world.act()
    assert phase(world) is Phase.DONE
    assert world["c"].mode == "ended"


def test_a_contributor_that_died_before_it_applied_can_begin_with_a_snapshot_of_that_round() -> None:
    """The digest of a round was remembered when all had applied it, and the one who had not was the one who asked."""
    world = World(rules(most_replayed_rounds=0, min_replicas=3))
    world.start(*"abc")
    while not world.history:
        for name in "abc":
            world.act_once(name)
    world.crash("c")
    world.act()
    world.pass_time(4)
    world.start("c")
    world.say("c")
    [order] = [message for message in world["c"].inbox if isinstance(message, CatchUp)]
    assert [(source.offer.round, len(source.holders)) for source in order.snapshots] == [(1, 2)]
    world.act()
    assert contributors(world) == ["abc"] * 3
