"""Rounds told as stories: who does what, and what becomes of it. `World` checks after every event what always holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from comms.agreement import (
    Acknowledge,
    Applied,
    CatchUp,
    CommittedRound,
    Finish,
    Join,
    Offer,
    Problem,
    Proposal,
    Refusal,
    Report,
    RoundPlan,
)
from comms.leases import Segment
from comms.rounds import advance, next_deadline_s
from comms.run_state import Alive, Heard, Phase, RunState, Send, Ticked
from tests.comms.world import CONFIG, CORPUS, World, rules, sha


def working(replicas: str = "abc", *, min_replicas: int = 2, rounds: int = 3) -> World:
    """A world whose replicas have all begun to work on round 1."""
    world = World(rules(replicas, min_replicas=min_replicas, rounds=rounds))
    world.start(*replicas)
    world.act(work="")
    assert [world[name].mode for name in replicas] == ["work"] * len(replicas)
    return world


def contributors(world: World) -> list[str]:
    return ["".join(committed.contributors) for committed in world.history]


def phase(world: World) -> Phase:
    return world.state.phase


def left_out(world: World) -> dict[str, str]:
    return {name: why for _, name, why in world.left_out}


def digest_of(world: World, name: str) -> str:
    """The first payload that a replica has reported for the open round."""
    return world.state.reports[name].payloads[0].digest


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


# ---- payloads ----


def test_a_payload_that_half_refuse_leaves_the_round_by_name() -> None:
    world = working()
    for name in "abc":
        world.work(name)
        world.say(name)
    world["a"].refuses = world["b"].refuses = {digest_of(world, "c")}
    world.act()
    assert contributors(world) == ["ab", "abc", "abc"]
    assert left_out(world) == {"c": "c's payload is broken"}
    assert world.summaries[0].absent == ({"replica": "c", "reason": "c's payload is broken"},)


def test_a_minority_that_complains_is_left_behind_and_the_payload_stays() -> None:
    world = working()
    for name in "abc":
        world.work(name)
        world.say(name)
    world["a"].refuses = {digest_of(world, "c")}
    world.act()
    assert contributors(world)[0] == "abc"
    reason = "could not get what the others got: c's payload is broken"
    assert world.summaries[0].absent == ({"replica": "a", "reason": reason},)
    world.run_to_the_end()
    assert phase(world) is Phase.DONE


def test_members_divided_in_two_halves_lose_one_at_a_time_until_the_rest_agrees() -> None:
    world = working("abcd")
    for name in "abcd":
        world.work(name)
        world.say(name)
    for name, others in (("a", "cd"), ("b", "cd"), ("c", "ab"), ("d", "ab")):
        world[name].refuses = {digest_of(world, other) for other in others}
    world.act()
    assert contributors(world)[0] == "ab"


def test_a_refused_payload_that_the_round_can_not_do_without_is_tried_again() -> None:
    world = working("ab")
    for name in "ab":
        world.work(name)
        world.say(name)
    world["a"].refuses = {digest_of(world, "b")}
    world.act()
    assert not world.history
    world.pass_time(12)
    world.act()
    assert world.state.attempt == 2, "once in exchange.fetch_deadline_s"
    world["a"].refuses = set()
    world.pass_time(12)
    world.act()
    assert contributors(world) == ["ab"] * 3


def test_a_payload_refused_for_too_long_fails_the_run_and_is_named() -> None:
    world = working("ab")
    for name in "ab":
        world.work(name)
        world.say(name)
    world["a"].refuses = {digest_of(world, "b")}
    for _ in range(40):
        world.act()
        world.pass_time(2)
    assert phase(world) is Phase.FAILED
    assert world.state.failure.endswith("without b: b's payload is broken")
    assert world.state.attempt < 8


def test_a_complaint_about_nothing_harms_only_the_one_who_complains() -> None:
    world = working()
    for name in "abc":
        world.work(name)
        world.say(name)
    world.feed(Heard("a", Acknowledge(1, 1, (Problem(sha("not in this manifest"), "I feel so"),))))
    world["a"].inbox.clear()
    world.act()
    assert contributors(world)[0] == "abc"
    assert world.summaries[0].absent == ({"replica": "a", "reason": "could not get what the others got: I feel so"},)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": math.nan}, "its loss is nan"),
        ({"loss": math.inf}, "its loss is inf"),
        ({"fragments": ()}, "its fragments are []"),
        ({"fragments": ("embed", "embed")}, "its fragments are ['embed', 'embed']"),
        ({"fragments": ("x",)}, "its fragments ['x'] are not those of the other replicas"),
    ],
)
def test_a_report_that_means_nothing_leaves_its_replica_out_by_name(change: dict[str, object], reason: str) -> None:
    world = working()
    for key, value in change.items():
        setattr(world["a"], key, value)
    world.act(work="a")  # the first to report: it does not decide what the others' must look like
    world.act()
    assert contributors(world)[0] == "bc"
    assert left_out(world) == {"a": reason}


def test_a_report_that_comes_when_a_round_is_proposed_counts_if_the_proposal_falls() -> None:
    """It was dropped; its replica, alive and silent, was then waited for for ever."""
    world = working(min_replicas=2)
    for name in "ab":
        world.work(name)
        world.say(name)
    world["a"].refuses = {digest_of(world, "b")}
    world.pass_time(20)
    assert phase(world) is Phase.AGREE
    world.work("c")
    world.say("c")
    world.act()
    assert contributors(world)[0] == "ac"
    assert left_out(world)["b"] == "b's payload is broken"


def test_late_and_early_reports_count_for_nothing() -> None:
    world = working()
    world.act(work="a")
    report = world.state.reports["a"]
    for number in (0, 2, 99):
        world.feed(Heard("b", replace(report, round=number)))
    assert set(world.state.reports) == {"a"}
    world.act()
    world.feed(Heard("a", report))
    assert phase(world) is Phase.DONE


# ---- the coordinator dies ----


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_the_coordinator_may_die_at_any_moment(steps: int) -> None:
    """Every third moment of two rounds of three replicas: nothing is lost, nothing is done twice."""
    world = World(rules(rounds=2))
    world.start(*"abc")
    taken = 0
    while taken < steps and any(world.act_once(name) for name in "abc"):
        taken += 1
    leases = dict(world.state.leases)
    world.restart(now_s=5.0)
    if phase(world) is not Phase.DONE:
        assert phase(world) is Phase.GATHER
        assert world.state.leases == leases
    world.run_to_the_end()
    assert contributors(world) == ["abc"] * 2
    assert phase(world) is Phase.DONE


def test_after_a_restart_reports_that_come_before_all_are_gathered_count() -> None:
    """They were dropped; nobody would have sent them again, and the round would have waited for ever."""
    world = working()
    world.act(work="ab")
    world.restart()
    world.connect("a")
    world.connect("b")
    world.act(work="")
    assert phase(world) is Phase.GATHER
    assert set(world.state.reports) == {"a", "b"}
    world.connect("c")
    world.act()
    assert contributors(world) == ["abc"] * 3


def test_after_a_restart_an_acknowledgement_from_before_is_not_one_of_the_new_proposal() -> None:
    world = working(min_replicas=1)
    world.act(work="ab")
    world.pass_time(20)
    proposed = world.state.attempt
    assert phase(world) is Phase.AGREE
    world.restart()
    for name in "abc":
        world.connect(name)
    world.act(work="c")
    assert all(message.attempt > proposed for message in world["c"].heard if isinstance(message, Proposal))


def test_after_a_restart_in_the_beginning_all_are_waited_for_again() -> None:
    world = World(rules(min_replicas=1))
    world.start("a")
    world.act()
    world.restart()
    world.connect("a")
    world.act()
    assert phase(world) is Phase.GATHER


def test_after_a_restart_a_replica_that_is_late_gets_its_lease_and_no_other() -> None:
    world = working()
    plans = {name: world[name].plan for name in "abc"}
    world.restart()
    world.connect("a")
    world.connect("b")
    world.act(work="")
    world.pass_time(60)
    assert phase(world) is Phase.WORK
    world.connect("c")
    world.act(work="")
    assert {name: world.state.leases[name] for name in "abc"} == {n: p.lease for n, p in plans.items() if p}
    world.act()
    assert contributors(world) == ["abc"] * 3


def test_a_restart_of_a_run_that_is_done_changes_nothing() -> None:
    world = World(rules())
    world.start(*"abc")
    world.act()
    before = world.state
    world.restart()
    assert world.state == before


def test_while_the_coordinator_stood_still_no_deadline_passed() -> None:
    world = working()
    world.act(work="ab")
    world.pass_time(19)
    world.stand_still(1000)
    assert phase(world) is Phase.WORK
    world.act()
    assert contributors(world) == ["abc"] * 3


def test_a_clock_that_began_anew_does_not_end_a_run_early() -> None:
    """How long replicas were lacking was measured on the clock of the process before."""
    world = working("ab")
    world.crash("b")
    world.pass_time(10)
    assert world.state.short_since_s is not None
    world.restart(now_s=1e7)
    world.run_to_the_end()
    assert phase(world) is Phase.DONE


# ---- digests ----


def test_a_minority_with_other_parameters_is_named_healed_and_takes_part_again() -> None:
    world = working(rounds=5)
    while len(world.history) < 2:
        for name in "abc":
            world.act_once(name)
    world["b"].damage = "a bit flipped"
    world.act()
    assert left_out(world)["b"] == "its parameters differ from the others'"
    assert world.state.faults["b"][0].startswith("it held ")
    assert phase(world) is Phase.DONE
    assert contributors(world)[0] == contributors(world)[-1] == "abc"
    assert len({replica.theta_digest for replica in world.replicas.values()}) == 1
    orders = [message for message in world["b"].heard if isinstance(message, CatchUp) and message.damaged_digest]
    assert len(orders) == 1, "healed once"
    assert orders[0].snapshots, "from a snapshot of the others"


def test_a_damaged_replica_is_healed_although_its_stream_breaks_before_it_hears_of_it() -> None:
    """It said again what it held, and that was a second fault."""
    world = working(rounds=4)
    world["b"].damage = "a bit flipped"
    while "b" not in world.state.damaged:
        for name in "abc":
            world.act_once(name)
    world.cut("b")
    world.connect("b")
    world.act()
    assert len(world.state.faults["b"]) == 1
    assert len({replica.theta_digest for replica in world.replicas.values()}) == 1


def test_a_replica_whose_memory_fails_again_and_again_is_expelled_by_name() -> None:
    world = working(rounds=9)
    world["b"].is_flaky = True
    world.act()
    assert "'b' is expelled after 3 faults (exchange.most_faults = 3), the last: it held " in world["b"].refused
    assert phase(world) is Phase.DONE
    assert contributors(world)[-1] == "ac"
    state, [action] = advance(world.state, Heard("b", world["b"].join), world.now_s)
    assert isinstance(action, Send)
    assert "expelled" in str(action.message)
    assert state == world.state


def test_what_a_damaged_replica_has_in_a_proposal_is_taken_out_of_it() -> None:
    """Its lease was given back while its payload stayed in: its tokens would have counted twice."""
    world = working("abcd")
    world["b"].damage = "a bit flipped"
    while len(world.history) < 1:
        for name in "abcd":
            world.act_once(name)
    while world.act_once("a") | world.act_once("b"):
        pass
    world.pass_time(20)
    assert {entry.replica for entry in world.state.manifest} == {"a", "b"}
    while "b" not in world.state.damaged:
        for name in "bcd":
            world.act_once(name, trains=False)
    assert phase(world) is Phase.WORK, "a alone is too few"
    world.act()
    assert contributors(world)[1] == "ac", "d is late, and b was healed too late"
    assert contributors(world)[2] == "abcd"


def test_the_first_to_speak_are_not_the_majority_yet() -> None:
    """Two damaged replicas that applied before the others had the three sound ones put out."""
    world = World(rules("abcde", rounds=2))
    world.start(*"abcde")
    world["a"].damage = world["b"].damage = "the same fault"
    while len(world.history) < 1:
        for name in "abcde":
            world.act_once(name)
    for name in "ab":
        while world[name].mode != "agree" and name not in world.state.damaged:
            world.act_once(name)
    world.act_once("c")
    world.act_once("c")
    world.act()
    assert set(world.state.faults) == {"a", "b"}
    assert phase(world) is Phase.DONE


def test_a_tie_ends_the_run_for_all_and_names_both_sides() -> None:
    world = working("ab")
    world["b"].damage = "a bit flipped"
    world.act()
    assert phase(world) is Phase.FAILED
    assert "none is in the majority: a " in world.state.failure
    assert all(Finish(world.state.failure) in world[name].heard for name in "ab")
    assert not world.summaries[0].agreed


def test_a_tie_whose_third_voice_dies_is_still_seen() -> None:
    world = working()
    world["b"].damage = "a bit flipped"
    while len(world.history) < 1:
        for name in "abc":
            world.act_once(name)
    world.crash("c")
    world.act(work="")
    world.pass_time(6)
    world.act()
    assert phase(world) is Phase.FAILED


def test_a_run_that_failed_of_a_tie_goes_on_when_one_side_starts_over() -> None:
    world = working("ab")
    world["b"].damage = "a bit flipped"
    world.act()
    world.crash("a", "b")
    world["b"].damage, world["b"].saved = "", []
    world.restart()
    world.run_to_the_end()
    assert phase(world) is Phase.DONE


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


def test_applied_figures_are_kept_when_a_stream_breaks_after_them() -> None:
    world = working("a", min_replicas=1, rounds=2)
    while not world.history:
        world.act_once("a")
    while world["a"].round == 0:
        world.act_once("a")
    world["a"].outbox[0] = replace(Applied(1, world["a"].theta_digest), validation_loss_sum=30.0, validation_targets=10)
    world.say("a")
    world.cut("a")
    world.connect("a")
    world.act()
    assert world.summaries[0].validation_loss == 3.0


# ---- who joins, and who goes ----


def open_world(
    replicas: str = "ab", *, most_replicas: int = 4, rounds: int = 6, most_replayed_rounds: int = 1
) -> World:
    """A world that lets others in; its replicas have committed two rounds."""
    world = World(
        rules(replicas, rounds=rounds, most_replicas=most_replicas, most_replayed_rounds=most_replayed_rounds)
    )
    world.start(*replicas)
    while len(world.history) < 2 or any(replica.round < 2 or replica.outbox for replica in world.replicas.values()):
        for name in replicas:
            if world[name].mode != "work" or len(world.history) < 2:
                world.act_once(name)
    return world


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


# ---- faults, and their end ----


def test_who_sends_broken_payloads_again_and_again_is_expelled_by_name() -> None:
    world = working(rounds=6)
    while phase(world) is not Phase.DONE:
        for name in "abc":
            world.act_once(name)
            if name == "c" and world["c"].report is not None:
                world.spoiled |= {payload.digest for payload in world["c"].report.payloads}
    assert contributors(world) == ["ab"] * 6
    assert "'c' is expelled after 3 faults" in world["c"].refused
    assert world["c"].refused.endswith("the last: c's is spoiled. Mend its machine; it may join by another name")


def test_one_accuser_of_three_expels_nobody() -> None:
    world = working(rounds=6)
    for _ in range(6):
        for name in "abc":
            if world[name].mode == "work":
                world.work(name)
                world.say(name)
        number, attempt = world.state.round, world.state.attempt
        bad = [Problem(digest_of(world, "c"), "I say so", broken=True)]
        world.feed(Heard("a", Acknowledge(number, attempt, tuple(bad))))
        world["a"].inbox.clear()
        world.act(work="")
        world.cut("a")
        world.connect("a")
        world.act(work="")
    assert not world.state.faults


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
