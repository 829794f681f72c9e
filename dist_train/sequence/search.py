"""Which time limits to give the greedy: a search over vectors (C_1 >= ... >= C_M), a number for each micro-batch.

Cutting a step into micro-batches and choosing their limits is one question here: a sequence goes wherever the greedy
puts it, so micro-batches mix lengths as far as that pays. Starts are the lower bound's layers and equal limits for
M_min, M_min + 1, ...; each is raised until the greedy succeeds, then lowered: from each place on together, then each
alone, then by small random trades (one or two up, others down, the sum less). What is far from its bound even then is
searched on by short runs of trades from many starts. The work is counted in calls of the greedy, not in seconds, and
the random numbers have a seed, so that the same lengths give the same plan.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from dist_train.sequence.packing import Packer, Packing, without_empty

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from dist_train.sequence.problem import Problem

JOIN_DEGREES = (8, 2**30)
"""Tried one after another: groups of above 8 ranks usually span machines."""
STEPS = 8
ONE_MORE = 0.9
TRADES = 2
"""Rounds of trades from the best packing."""
RESTART_CALLS = 300
FIRST_RESTART = 100
"""The seed of the first short run; other runs have smaller ones."""
NEARBY = 0.05
"""How far from a start others are tried: a part of each limit."""
SHORT = 0.4
"""A short micro-batch works for this part of the time of the next longer one."""
TALL = 6
"""Sequences whose own times are tried as limits."""
MORE_MICRO_BATCHES = 4
EXACT = 1e-4
"""A packing this close to a lower bound is as good as perfect."""


class Search:
    """The best packing found so far, and what may still be spent on a better one."""

    def __init__(self, problem: Problem, calls: int) -> None:
        self.problem = problem
        self.best: Packing | None = None
        self.target_s = 0.0
        self._packer = Packer(problem)
        self._calls = calls
        self._fixed_s = float(problem.fixed_s.min())
        self._join_degrees = [degree for degree in JOIN_DEGREES if degree < problem.degree.max()] or [2**30]
        if self._join_degrees[-1] != JOIN_DEGREES[-1]:
            self._join_degrees.append(JOIN_DEGREES[-1])

    @property
    def is_over(self) -> bool:
        """Whether all calls are spent, or nothing is left to gain."""
        is_perfect = self.best is not None and self.best.step_s <= self.target_s * (1 + EXACT)
        return is_perfect or self._packer.calls >= self._calls

    @property
    def limits_s(self) -> NDArray[np.float64]:
        """(M,) falling: the seconds of the best packing's micro-batches; empty without one."""
        return np.zeros(0) if self.best is None else _falling(self.best)

    def consider(self, packing: Packing | None) -> None:
        """Remembers a packing that is better than the best."""
        if packing is not None and (self.best is None or packing.step_s < self.best.step_s * (1 - 1e-12)):
            self.best = packing

    def even(self) -> None:
        """Starts from equal limits, for M_min micro-batches and more until one more is no better."""
        last = math.inf
        fewest = self.problem.fewest_micro_batches
        for count in range(fewest, fewest + MORE_MICRO_BATCHES + len(self.problem.lengths)):
            highest_s = self._highest_s()
            found = self._scaled(np.ones(count), highest_s * 1e-4, highest_s, steps=12)
            if found is not None:
                if found.step_s >= last:
                    return
                last = found.step_s
            if found is not None and count - fewest >= MORE_MICRO_BATCHES:
                return

    def from_limits(self, limits_s: NDArray[np.float64], *, descend: bool = True) -> None:
        """Starts from these limits, raised as far as they must be."""
        extra = np.maximum(limits_s - self._fixed_s, 0)
        found = self._scaled(extra, 1.0, 1.6, STEPS)
        if found is None:
            found = self._scaled(extra, 1.6, 1e3, STEPS)
        if found is not None and descend:
            self.descend(found)

    def towers(self, limits_s: NDArray[np.float64], width: int = 3, levels: int = 2) -> list[Packing]:
        """The best `width` packings whose tallest micro-batches are as tall as one of the longest sequences needs them.

        A beam search: level i tries every such height for micro-batch i, and scales the limits of those after it.
        """
        beam: list[tuple[NDArray[np.float64], Packing | None]] = [(limits_s, None)]
        for level in range(min(levels, len(limits_s))):
            tried = list(beam) if level else []
            for limits, _ in beam:
                for height in self._heights(limits, level):
                    wanted = limits.copy()
                    wanted[level] = height
                    found = self._scaled_after(wanted, level + 1)
                    if found is not None:
                        tried.append((_resized(_falling(found), len(limits)), found))
            beam = _distinct(tried, width) or beam
        return [packing for _, packing in beam if packing is not None]

    def _heights(self, limits_s: NDArray[np.float64], level: int) -> list[float]:
        """Seconds of the longest sequences alone, by each kind of slot, near the limit of micro-batch `level`."""
        problem = self.problem
        longest = slice(0, TALL)
        alone = problem.fixed_s[None, :] + problem.seconds[longest]
        fits = problem.lengths[longest, None] <= problem.capacity[None, :]
        low, high = 0.7 * limits_s[level], 1.6 * limits_s[level]
        if level:
            high = min(high, float(limits_s[level - 1]))
        return sorted({float(seconds) for seconds in alone[fits] if low <= seconds <= high})

    def _scaled_after(self, limits_s: NDArray[np.float64], begin: int) -> Packing | None:
        """The best packing of a bisection on a factor for the limits from `begin` on."""
        low, high, best = 0.8, 1.4, None
        factor = high
        for _ in range(6):
            if self.is_over:
                break
            wanted = limits_s.copy()
            wanted[begin:] = self._fixed_s + (limits_s[begin:] - self._fixed_s) * factor
            found = self._tried(wanted)
            if found is None and factor == high and best is None:
                return None
            low, high = (low, factor) if found is not None else (factor, high)
            best = found if found is not None and (best is None or found.step_s < best.step_s) else best
            factor = (low + high) / 2
        return best

    def descend(self, start: Packing) -> None:
        """Lowers limits from each micro-batch on together, then each alone, until a sweep gains nothing."""
        now = _falling(start)
        while not self.is_over:
            before = now.sum()
            for i in range(len(now)):
                for chosen in (slice(i, None), slice(i, i + 1)):
                    now = self._lowered(now, chosen)
            if now.sum() > before * (1 - 1e-3):
                return

    def trade(self, *starts_s: NDArray[np.float64]) -> None:
        """Spends the calls that are left on random trades between limits: in equal parts from each of `starts_s`, from
        the best packing, and from what is the best then."""
        starts = [start_s for start_s in starts_s if len(start_s)]
        part = max(0, self._calls - self._packer.calls) // (len(starts) + TRADES)
        for seed in range(len(starts) + TRADES):
            if seed < len(starts):
                self.trade_from(starts[seed], part, seed)
            elif self.best is not None:
                self.trade_from(_falling(self.best), part, seed)

    def restart(self, starts_s: Sequence[NDArray[np.float64]], calls: int, enough_s: float) -> None:
        """Spends up to so many more calls on short runs of trades, until a step of `enough_s` is found: in turn from
        the best packing, from it with one micro-batch more, from each of `starts_s`, and from these and the best with a
        short micro-batch for what the others have no room for; later from near them. A long run stays in the valley it
        begins in; short ones see more."""
        self._calls = self._packer.calls + calls
        random = np.random.default_rng(0)
        for seed in itertools.count():
            if self.is_over or self.best is None or self.best.step_s <= enough_s:
                return
            now = self.limits_s
            turns = [now, one_more(now), *starts_s, *(self._with_a_short_one(some) for some in (now, *starts_s))]
            start_s = turns[seed % len(turns)]
            if seed >= len(turns):
                start_s = np.sort(start_s * random.normal(1, NEARBY, len(start_s)))[::-1]
            self.trade_from(start_s, RESTART_CALLS, FIRST_RESTART + seed)

    def _with_a_short_one(self, limits_s: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(limits_s, self._fixed_s + SHORT * (limits_s[-1:] - self._fixed_s))

    def trade_from(self, start_s: NDArray[np.float64], calls: int, seed: int = 0) -> None:
        """Spends so many calls on trades that begin with limits of `start_s`, raised as far as they must be."""
        if self.is_over or not calls:
            return
        joins = (self._join_degrees[0], self._join_degrees[-1])
        found = self._packer.trade(np.ascontiguousarray(start_s), joins, calls, seed)
        self.consider(None if found is None else without_empty(found))

    def _lowered(self, now: NDArray[np.float64], chosen: slice) -> NDArray[np.float64]:
        """Limits after a bisection on a factor for the chosen ones."""
        low, high, base = 0.7, 1.0, now
        for _ in range(6):
            if self.is_over:
                break
            factor = (low + high) / 2
            wanted = base.copy()
            wanted[chosen] = self._fixed_s + (base[chosen] - self._fixed_s) * factor
            found = self._tried(wanted)
            low, high = (low, factor) if found is not None else (factor, high)
            if found is not None and found.step_s < now.sum() and len(found.micro_batch_s) == len(base):
                now = _falling(found)
        return now

    def _scaled(self, extra: NDArray[np.float64], low: float, high: float, steps: int) -> Packing | None:
        """The best packing of a bisection on one factor for all limits above the fixed seconds."""
        best = self._tried(self._fixed_s + extra * high)
        if best is None:
            return None
        for _ in range(steps):
            if self.is_over:
                break
            factor = math.sqrt(low * high)
            found = self._tried(self._fixed_s + extra * factor)
            low, high = (low, factor) if found is not None else (factor, high)
            best = found if found is not None and found.step_s < best.step_s else best
        return best

    def _tried(self, limits_s: NDArray[np.float64]) -> Packing | None:
        """The first packing that some join degree gives within the limits; remembered when it is the best."""
        falling: NDArray[np.float64] = np.ascontiguousarray(np.sort(limits_s)[::-1])
        for join_degree in self._join_degrees:
            packing = self._packer.pack(falling, join_degree)
            if packing is not None:
                packing = without_empty(packing)
                self.consider(packing)
                return packing
        return None

    def _highest_s(self) -> float:
        """Seconds that are enough for all sequences in one group of the widest kind, or of any kind."""
        fixed = self.problem.fixed_s
        return float(self.problem.seconds.max(axis=1).sum() + fixed.max() - fixed.min())


def limits_of(layers: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    """(M,) falling: layers (seconds, a fraction of micro-batches) poured into whole micro-batches from the tallest
    on."""
    limits: list[float] = []
    room, poured = 1.0, 0.0
    for seconds, count in layers:
        left = count
        while left > 1e-6:
            part = min(left, room)
            poured, left, room = poured + part * seconds, left - part, room - part
            if room < 1e-6:
                limits.append(poured)
                room, poured = 1.0, 0.0
    if room < 0.5:
        limits.append(poured / (1 - room))
    return np.array(limits)


def one_more(limits_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower limits for one micro-batch more."""
    return ONE_MORE * np.append(limits_s, limits_s[-1:])


def _falling(packing: Packing) -> NDArray[np.float64]:
    return np.ascontiguousarray(np.sort(packing.micro_batch_s)[::-1])


def _resized(limits_s: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` limits: missing ones are as high as the lowest."""
    return np.concatenate([limits_s, np.full(max(0, count - len(limits_s)), limits_s[-1])])[:count]


def _distinct(
    tried: list[tuple[NDArray[np.float64], Packing | None]], width: int
) -> list[tuple[NDArray[np.float64], Packing | None]]:
    """The `width` fastest of different heights."""
    kept: list[tuple[NDArray[np.float64], Packing | None]] = []
    for limits, packing in sorted(tried, key=lambda entry: math.inf if entry[1] is None else entry[1].step_s):
        if all(abs(limits[0] - other[0]) + abs(limits[-1] - other[-1]) > 1e-3 * limits[0] for other, _ in kept):
            kept.append((limits, packing))
    return kept[:width]
