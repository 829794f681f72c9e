"""The ranks of a replica as the planner sees them: how many tokens each holds, how fast it is, and its slots.

A slot is a place where a group may stand: an aligned block of consecutive ranks, as many as a power of two. N
ranks have
at most 2 N - 1 of them, so that all process groups are made once, at the start.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from dist_train.sequence.errors import PlanningError


@dataclass(frozen=True)
class Slot:
    """An aligned block of ranks. Its slowest rank sets its speed, its smallest one its capacity."""

    first: int
    degree: int
    speed: float
    capacity_tokens: int
    """Tokens that a group in this slot may hold: those of its smallest rank, times the degree."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the block, rising."""
        return tuple(range(self.first, self.first + self.degree))


@dataclass(frozen=True)
class Ranks:
    """The ranks of one replica, by number."""

    capacity_tokens: tuple[int, ...]
    """Tokens that each rank may hold in one micro-batch: a strict budget."""
    speed: tuple[float, ...]
    """Of each rank, relative to the one that was calibrated."""
    max_degree: int = 2**30
    """The largest allowed degree: a model's query heads, say."""

    def __post_init__(self) -> None:
        if not self.capacity_tokens or len(self.capacity_tokens) != len(self.speed):
            raise PlanningError(
                f"{len(self.capacity_tokens)} capacities and {len(self.speed)} speeds: each rank needs one of either"
            )
        if min(self.capacity_tokens) < 1:
            raise PlanningError(f"a rank's capacity of {min(self.capacity_tokens)} tokens must be at least 1")
        if not all(math.isfinite(speed) and speed > 0 for speed in self.speed):
            raise PlanningError("each rank's speed must be above 0")
        if self.max_degree < 1:
            raise PlanningError(f"max_degree = {self.max_degree} must be at least 1")

    @classmethod
    def equal(cls, count: int, capacity_tokens: int, max_degree: int = 2**30) -> Ranks:
        """`count` ranks of one kind."""
        if count < 1:
            raise PlanningError(f"{count} ranks: there must be at least 1")
        return cls((capacity_tokens,) * count, (1.0,) * count, max_degree)

    def __len__(self) -> int:
        return len(self.speed)

    @functools.cached_property
    def degrees(self) -> tuple[int, ...]:
        """The degrees that groups may have: powers of two that fit, rising."""
        largest = min(len(self), self.max_degree)
        return tuple(2**power for power in range(largest.bit_length()))

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All slots: by degree, then by place."""
        return tuple(
            self._slot(first, degree) for degree in self.degrees for first in range(0, len(self) - degree + 1, degree)
        )

    @functools.cached_property
    def is_uniform(self) -> bool:
        """Whether all ranks are alike and every set of degrees that sum up to N can be placed: N is a power of two."""
        alike = len(set(self.speed)) == 1 and len(set(self.capacity_tokens)) == 1
        return alike and len(self) & (len(self) - 1) == 0

    def speed_of(self, ranks: tuple[int, ...]) -> float:
        """Speed of a group that stands on `ranks`."""
        return min(self.speed[rank] for rank in ranks)

    def capacity_of(self, ranks: tuple[int, ...]) -> int:
        """Tokens that a group on `ranks` may hold."""
        return min(self.capacity_tokens[rank] for rank in ranks) * len(ranks)

    def _slot(self, first: int, degree: int) -> Slot:
        block = tuple(range(first, first + degree))
        return Slot(first, degree, self.speed_of(block), self.capacity_of(block))
