"""How stories of rounds begin, and what they look at."""

from __future__ import annotations

from comms.run_state import Phase
from tests.comms.world import World, rules


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
