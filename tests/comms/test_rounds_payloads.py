"""Rounds whose payloads are refused, lost or broken, told as stories."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from comms.agreement import Acknowledge, Problem
from comms.run_state import Heard, Phase
from tests.comms.stories import contributors, digest_of, left_out, phase, working
from tests.comms.world import sha

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
