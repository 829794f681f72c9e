"""Rounds after which replicas do not hold the same, told as stories."""

from __future__ import annotations

from comms.agreement import CatchUp, Finish
from comms.rounds import advance
from comms.run_state import Heard, Phase, Send
from tests.comms.stories import contributors, left_out, phase, working
from tests.comms.world import World, rules


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
