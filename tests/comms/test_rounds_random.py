"""Whatever happens to replicas and coordinator, in whatever order: what must hold holds, and the run gets to its end.

Each story is drawn from its number, so a failure can be told again: `tell(number)`. DIST_TRAIN_STEPS sets how many
steps are told in all; `World.check` runs after each event of each step.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from comms.run_state import Phase
from tests.comms.world import Replica, World, rules

STEPS = int(os.environ.get("DIST_TRAIN_STEPS", "4000"))
STEPS_IN_A_STORY = 80
BATCHES = 4
ROUNDS = 6


class Story:
    """One world in which anything happens. A step is drawn among those that are possible."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        names = "abcd"[: self.random.choice([1, 2, 2, 3, 3, 4])]
        run_rules = rules(
            names,
            rounds=ROUNDS,
            min_replicas=self.random.randint(1, len(names)),
            lease_tokens=self.random.choice([1, 130, 999, 2500]),
        )
        self.world = World(run_rules, now_s=self.random.uniform(0, 1e6))
        for replica in self.world.replicas.values():
            replica.save_every = self.random.randint(1, 3)
        self.told: list[str] = []
        self.refusals = False
        self.faults = self.random.choice([0.02, 0.1, 0.3])
        """How often a step is a fault."""

    def step(self) -> None:
        faulty = self.random.random() < self.faults
        possible = list(self._faults() if faulty else self._progress())
        what, act, *names = self.random.choice(possible)
        self.told.append(" ".join([what, *names]))
        act(*names)

    def _progress(self) -> Iterable[tuple[Callable[..., None] | str, ...]]:
        raise NotImplementedError


Step = tuple[str, Callable[[], None]]


class Teller:
    """Draws steps for one world and remembers them."""

    def __init__(self, number: int) -> None:
        self.random = draw = random.Random(number)
        names = "abcd"[: draw.choice([1, 2, 2, 3, 3, 4])]
        self.world = World(
            rules(
                names,
                rounds=ROUNDS,
                min_replicas=draw.randint(1, len(names)),
                lease_tokens=draw.choice([1, 130, 999, 2500]),
            ),
            now_s=draw.uniform(0, 1e6),
        )
        for replica in self.world.replicas.values():
            replica.save_every = draw.randint(1, 3)
        self.fault_rate = draw.choice([0.02, 0.1, 0.3])
        self.told: list[str] = []
