"""Whatever happens to replicas and coordinator, in whatever order: what must hold holds, and the run gets to its end.

A story is drawn from its number, so one that fails can be told again: `Story(number).tell()`. DIST_TRAIN_STEPS sets
how many steps are told in all. `World.check` runs after each event of each step.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from comms.agreement import CatchUp
from comms.run_state import Phase
from tests.comms.world import World, rules

STEPS = int(os.environ.get("DIST_TRAIN_STEPS", "30000"))
STEPS_IN_A_STORY = 120
ROUNDS = 6

Step = tuple[str, Callable[[], None]]


class Story:
    """Steps of one world, each drawn among those that are possible; in some stories faults are rare, in some not."""

    def __init__(self, number: int) -> None:
        self._draw = draw = random.Random(number)
        names = "abcd"[: draw.choice([1, 2, 2, 3, 3, 4])]
        run_rules = rules(
            names,
            rounds=ROUNDS,
            min_replicas=draw.randint(1, len(names)),
            lease_tokens=draw.choice([1, 130, 999, 2500]),
            most_replicas=draw.choice([0, len(names) + 1, len(names) + 2]),
            most_replayed_rounds=draw.choice([0, 1, 20]),
            most_faults=draw.choice([1, 2, 3]),
        )
        self._newcomers = "xyz"[: draw.choice([0, 1, 3])]
        self._memory_fails = len(names) > 2 and draw.random() < 0.5
        self.world = World(run_rules, now_s=draw.uniform(0, 1e6))
        for replica in self.world.replicas.values():
            replica.save_every = draw.randint(1, 3)
            replica.trains = draw.choice([0.01, 0.5, 1.0, 1.0, 1.0])
        self._fault_rate = draw.choice([0.03, 0.1, 0.3])
        self.told: list[str] = []

    def tell(self) -> None:
        """The story, and its good end: when all behave, the run is done within a bounded time."""
        for _ in range(STEPS_IN_A_STORY):
            is_fault = self._draw.random() < self._fault_rate
            what, step = self._draw.choice(list(self._faults() if is_fault else self._progress()))
            self.told.append(what)
            step()
        self.told.append("everybody behaves")
        self.world.run_to_the_end()
        if self.world.state.phase is Phase.FAILED:
            self.told.append(f"started again: {self.world.state.failure}")
            self.world.crash(*self.world.replicas)
            for name in self.world.expelled:
                self.world[name].refused = ""
            self.world.pardon()
            self.world.run_to_the_end()
        assert self.world.state.phase is Phase.DONE, self.world.state.failure
        assert {replica.round for replica in self.world.welcome} == {ROUNDS}
        assert len({replica.theta_digest for replica in self.world.welcome}) == 1
        assert [summary.round for summary in self.world.summaries] == list(range(1, ROUNDS + 1))

    def _progress(self) -> Iterator[Step]:
        world, draw = self.world, self._draw
        yield "time passes", partial(world.pass_time, draw.choice([0.1, 0.5, 3.0]))
        for name in set(self._newcomers) - set(world.replicas):
            yield f"newcomer {name}", partial(world.start, name)
        for name, replica in world.replicas.items():
            if replica.refused:
                continue
            if replica.mode == "dead":
                yield f"start {name}", partial(world.start, name)
            elif not replica.awake:
                yield f"wake {name}", partial(setattr, replica, "awake", True)
            elif replica.is_running:
                yield f"act {name}", partial(self._act, name, draw.randint(1, 4))
                if not replica.connected:
                    yield f"connect {name}", partial(world.connect, name)
                elif replica.outbox:
                    yield f"say {name}", partial(world.say, name)
                if replica.mode == "work" and replica.plan is not None:
                    yield f"work {name}", partial(world.work, name)
                elif replica.inbox:
                    yield f"hear {name}", partial(world.hear, name)

    def _act(self, name: str, times: int) -> None:
        for _ in range(times):
            self.world.act_once(name)

    def _faults(self) -> Iterator[Step]:
        world, draw = self.world, self._draw
        now_s = draw.choice([0.0, world.now_s, draw.uniform(0, 1e6)])
        yield "restart the coordinator", partial(world.restart, now_s)
        seconds = draw.choice([5.0, 10.0, 21.0, 61.0])
        yield f"wait for {seconds:g} s", partial(world.pass_time, seconds)
        yield f"stop the coordinator for {seconds:g} s", partial(world.stand_still, seconds)
        for name, replica in world.replicas.items():
            if not replica.is_running:
                continue
            noticed = draw.random() < 0.7
            if self._memory_fails and replica.round and not any(other.damage for other in world.replicas.values()):
                yield f"damage {name}", partial(setattr, replica, "damage", f"bit {len(self.told)}")
            if replica.report is not None and replica.report.round == world.state.round and not world.state.attempt:
                spoiled = {payload.digest for payload in replica.report.payloads}
                yield f"spoil {name}'s payload", partial(world.spoiled.update, spoiled)
            yield f"crash {name}", partial(world.crash, name, noticed=noticed)
            yield f"pause {name}", partial(setattr, replica, "awake", False)
            if replica.connected:
                yield f"cut {name}", partial(world.cut, name, draw.randint(0, 3), noticed=noticed)
                yield f"leave {name}", partial(world.leave, name)
            for owner, report in world.state.reports.items():
                yield f"hide {owner}'s payload from {name}", partial(replica.refuses.add, report.payloads[0].digest)


def test_any_story_is_right_at_all_times_and_ends_well() -> None:
    happened = Counter[str]()
    for number in range(max(1, STEPS // STEPS_IN_A_STORY)):
        story = Story(number)
        try:
            story.tell()
        except Exception as error:
            error.add_note(f"story {number}: " + "; ".join(story.told))
            raise
        happened.update(what.split()[0] for what in story.told)
        reasons = [absent["reason"] for summary in story.world.summaries for absent in summary.absent]
        happened.update(" ".join(reason.split()[:2]) for reason in reasons)
        happened.update(["expelled"] * len(story.world.expelled))
        orders = [m for r in story.world.replicas.values() for m in r.heard if isinstance(m, CatchUp)]
        happened.update("healed" for order in orders if order.damaged_digest)
        happened.update("snapshot" for order in orders if order.snapshots)
        happened.update(
            "newcomer refused" for name in "xyz" if name in story.world.replicas and story.world[name].refused
        )
    faults = {"restart", "wait", "crash", "pause", "cut", "leave", "hide", "stop", "started", "spoil", "damage"}
    outcomes = {"no report", "did not", "could not", "has to", "a's payload", "a's is", "its parameters"}
    outcomes |= {"newcomer", "newcomer refused", "expelled", "healed", "snapshot"}
    missing = (faults | outcomes) - set(happened)
    assert not missing, "the stories were too tame to show anything"
