"""Actors of a simulated world: their times, their order, their ends."""

from __future__ import annotations

import math
from functools import partial

import pytest

from comms.errors import RunFailed
from comms.virtual_time import Actor, World


class Still:
    """Nothing flows."""

    next_s = math.inf

    def finish(self, now_s: float) -> None:
        raise AssertionError(now_s)


def test_actors_meet_in_the_order_of_their_own_times_and_not_in_that_of_their_turns() -> None:
    world, log, posted = World(Still()), list[tuple[str, float]](), list[str]()

    def post(name: str) -> None:
        posted.append(name)
        reader.wake()

    def has_come(number: int) -> bool:
        return len(posted) >= number

    def worker(actor: Actor) -> None:
        actor.spend({"slow": 3.0, "quick": 1.0}[actor.name])
        actor.at(partial(post, actor.name))
        actor.spend(1.0)
        actor.catch_up()
        log.append((actor.name, world.now_s))

    def read(actor: Actor) -> None:
        for number in (1, 2):
            actor.wait(partial(has_come, number))
            log.append((posted[number - 1], actor.now_s))
        actor.spend(5.0)
        actor.go_back(2.5)
        actor.be_at(3.0)
        assert actor.now_s == 3.0

    world.add("slow", worker)
    world.add("quick", worker)
    reader = world.add("reader", read)
    world.run()
    assert log == [("quick", 1.0), ("quick", 2.0), ("slow", 3.0), ("slow", 4.0)]


def test_who_waits_for_nothing_is_named_and_what_one_raises_ends_all() -> None:
    world = World(Still())
    world.add("lonely", lambda actor: actor.wait(lambda: False))
    with pytest.raises(RunFailed, match="lonely still wait"):
        world.run()

    def break_down(actor: Actor) -> None:
        actor.spend(1.0)
        actor.catch_up()
        raise ValueError(actor.name)

    world, unwound = World(Still()), list[str]()

    def wait_for_ever(actor: Actor) -> None:
        try:
            actor.wait(lambda: False)
        finally:
            unwound.append(actor.name)

    world.add("waits", wait_for_ever)
    world.add("breaks", break_down)
    world.add("later", wait_for_ever)
    with pytest.raises(ValueError, match="breaks"):
        world.run()
    assert unwound == ["waits", "later"]
