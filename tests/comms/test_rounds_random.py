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

import pytest

from comms.run_state import Phase
from tests.comms.world import World, rules

STEPS = int(os.environ.get("DIST_TRAIN_STEPS", "6000"))
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
        )
        self.world = World(run_rules, now_s=draw.uniform(0, 1e6))
        for replica in self.world.replicas.values():
            replica.save_every = draw.randint(1, 3)
        self._fault_rate = draw.choice([0.03, 0.1, 0.3])
        self.told: list[str] = []

    def tell(self) -> None:
        """The story, and its good end: when all behave, the run is done within a bounded time."""
        for _ in range(STEPS_IN_A_STORY):
            is_fault = self._draw.random() < self._fault_rate
            what, step = self._draw.choice(list(self._faults() if is_fault else self._progress()))
            self.told.append(what)
            step()
        self.early = self.world.state.phase is Phase.FAILED
        self.told.append("everybody behaves")
        self.world.run_to_the_end()
        if self.world.state.phase is Phase.FAILED:
            self.told.append(f"all of it is started again, since {self.world.state.failure}")
            self.world.crash(*self.world.replicas)
            self.world.restart()
            self.world.run_to_the_end()
        assert self.world.state.phase is Phase.DONE, self.world.state.failure
        assert {replica.round for replica in self.world.replicas.values()} == {ROUNDS}
        assert [summary.round for summary in self.world.summaries] == list(range(1, ROUNDS + 1))

    def _progress(self) -> Iterator[Step]:
        world, draw = self.world, self._draw
        yield "time passes", partial(world.pass_time, draw.choice([0.1, 0.5, 3.0]))
        for name, replica in world.replicas.items():
            if replica.mode == "dead":
                yield f"start {name}", partial(world.start, name)
            elif not replica.awake:
                yield f"wake {name}", partial(setattr, replica, "awake", True)
            elif replica.is_running:
                yield f"{name} acts", partial(self._act, name, draw.randint(1, 4))
                if not replica.connected:
                    yield f"connect {name}", partial(world.connect, name)
                elif replica.outbox:
                    yield f"say {name}", partial(world.say, name)
                if replica.mode == "work":
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
        yield f"{seconds:g} s pass", partial(world.pass_time, seconds)
        for name, replica in world.replicas.items():
            if not replica.is_running:
                continue
            yield f"crash {name}", partial(world.crash, name)
            yield f"{name} falls asleep", partial(setattr, replica, "awake", False)
            if replica.connected:
                yield f"cut {name}", partial(world.cut, name, draw.randint(0, 3), draw.randint(0, 1))
                yield f"leave {name}", partial(world.leave, name)
            for owner, report in world.state.reports.items():
                yield f"{name} can't get {owner}'s", partial(replica.refuses.add, report.payloads[0].digest)


@pytest.mark.parametrize("part", range(4))
def test_a_run_of_any_story_is_right_at_all_times_and_ends(part: int) -> None:
    steps, events = 0, Counter[str]()
    for number in range(part, STEPS // STEPS_IN_A_STORY, 4):
        story = Story(number)
        try:
            story.tell()
        except Exception as error:
            error.add_note(f"story {number}: " + "; ".join(story.told))
            raise
        steps += len(story.told)
        events.update(what.split()[0] for what in story.told)
        events.update(left_out[2].split()[0] for left_out in story.world.left_out)
    print(part, steps, events)
