"""Rounds whose coordinator dies and is started again, told as stories."""

from __future__ import annotations

import pytest

from comms.agreement import Proposal
from comms.run_state import Phase
from tests.comms.stories import contributors, phase, working
from tests.comms.world import World, rules


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
