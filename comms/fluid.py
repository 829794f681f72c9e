"""Transfers as fluids: what every byte on limited links takes, worked out and not waited for.

Members are numbered. The transfers that go from i to j at one time share the path (i, j), as streams of one
connection do, each the same part of it. Paths share the members' lines max-min fairly: with up_i, down_j and cap_ij in
bits a second, A the paths that have anything to carry, and x_ij the rate of one,

    sum_j x_ij <= up_i,   sum_i x_ij <= down_j,   x_ij <= cap_ij                                          (1)
    each path has a limit of (1) that is used up, and on which no other path has more than it          (2)

One x fulfils both. It is found from the tightest limits outwards: a limit whose equal share, among the paths that it
still has, is not above the share of any other limit of theirs decides its paths for good                (3)
(several do so in one pass). Between two moments at which a path begins or ends to be busy, rates are constant; so the
moments themselves are exact: of path (i, j) each of n streams has been served

    V_ij(t') = V_ij(t) + x_ij (t' - t) / (8 n)   bytes,  and a stream that began at V with b is through at V + b  (4)

Paper: Bertsekas & Gallager, Data Networks (1992), section 6.5.2, for (2); Parekh & Gallager (1993) for (4).
Differs: (3) decides all locally tightest limits in one pass.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
_ROUNDING = 1e-12


def max_min_rates(up: Floats, down: Floats, cap: Floats, busy: Booleans) -> Floats:
    """The rate of every busy path, 0 of the others; (n,), (n,), (n, n), (n, n). Infinite where nothing limits one."""
    rates, left, left_up, left_down = np.zeros(cap.shape), busy.copy(), up.copy(), down.copy()
    while left.any():
        share_up = _shares(left_up, left.sum(1))
        share_down = _shares(left_down, left.sum(0))
        limit = np.minimum(np.minimum(share_up[:, None], share_down), cap)
        tightest_up = share_up <= np.where(left, np.minimum(share_down, cap), np.inf).min(1)
        tightest_down = share_down <= np.where(left, np.minimum(share_up[:, None], cap), np.inf).min(0)
        decided = left & (tightest_up[:, None] | tightest_down | (cap <= limit))  # (3)
        rates[decided] = limit[decided]
        given = np.where(decided & np.isfinite(limit), limit, 0.0)
        left_up = np.maximum(left_up - given.sum(1), 0.0)
        left_down = np.maximum(left_down - given.sum(0), 0.0)
        left &= ~decided
    return rates


def _shares(left: Floats, paths: NDArray[np.int64]) -> Floats:
    return np.where(paths > 0, left / np.maximum(paths, 1), np.inf)


@dataclass(frozen=True)
class Limits:
    """(1), bits a second; infinity where there is none."""

    up: Floats
    down: Floats
    cap: Floats


@dataclass(eq=False)
class Stream:
    """One transfer."""

    sender: int
    receiver: int
    through_at: float
    """V at which it is through (4)."""
    on_through: Callable[[], None]
    is_cancelled: bool = False


class FluidLinks:
    """All transfers at one time. `now_s` never goes back from one call to the next."""

    def __init__(self, limits: Limits) -> None:
        size = len(limits.up)
        self._limits = limits
        self._now_s = 0.0
        self._streams: dict[tuple[int, int], list[tuple[float, int, Stream]]] = {}
        self._served = np.zeros((size, size))
        self._next = np.full((size, size), math.inf)
        """V at which the first stream of a path is through."""
        self._number = np.zeros((size, size))
        self._rates = np.zeros((size, size))
        self._are_rates_old = False
        self._count = itertools.count()
        self._soonest_s: float | None = math.inf

    def become(self, limits: Limits, now_s: float) -> None:
        """From now on other limits hold."""
        self._run_to(now_s)
        self._limits, self._are_rates_old, self._soonest_s = limits, True, None

    def begin(
        self, sender: int, receiver: int, num_bytes: float, on_through: Callable[[], None], now_s: float
    ) -> Stream:
        """A transfer begins; `on_through` is called by `finish` when its last byte has left."""
        self._run_to(now_s)
        path = (sender, receiver)
        waiting = self._streams.setdefault(path, [])
        if not waiting:
            self._served[path], self._are_rates_old = 0.0, True
        stream = Stream(sender, receiver, float(self._served[path]) + num_bytes, on_through)
        heapq.heappush(waiting, (stream.through_at, next(self._count), stream))
        self._settle(path)
        return stream

    def cancel(self, stream: Stream, now_s: float) -> None:
        """A transfer ends where it is."""
        self._run_to(now_s)
        path = (stream.sender, stream.receiver)
        stream.is_cancelled = True
        self._streams[path] = [waiting for waiting in self._streams[path] if waiting[2] is not stream]
        heapq.heapify(self._streams[path])
        self._settle(path)

    @property
    def rates(self) -> Floats:
        """Of every path now, bits a second."""
        if self._are_rates_old:
            limits = self._limits
            self._rates = max_min_rates(limits.up, limits.down, limits.cap, self._number > 0)
            self._are_rates_old = False
        return self._rates

    @property
    def next_s(self) -> float:
        """When the next transfer is through, if nothing else happens; infinity when none moves."""
        if self._soonest_s is None:
            self._soonest_s = self._now_s + float(self._remaining_s().min())
        return self._soonest_s

    def finish(self, now_s: float) -> None:
        """Time comes to `now_s`, which is `next_s`: calls back whoever is through, in the order in which they began."""
        remaining_s = self._remaining_s()
        due = remaining_s <= (now_s - self._now_s) + _ROUNDING * max(1.0, now_s)
        self._run_to(now_s)
        through = list[tuple[int, Stream]]()
        for sender, receiver in np.argwhere(due):
            path = (int(sender), int(receiver))
            waiting, until = self._streams[path], float(self._next[path])
            while waiting and waiting[0][0] <= until:
                _, number, stream = heapq.heappop(waiting)
                through.append((number, stream))
            self._settle(path)
        for _, stream in sorted(through, key=lambda numbered: numbered[0]):
            stream.on_through()

    def _remaining_s(self) -> Floats:
        """Until the first stream of each path is through (4)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = 8 * np.maximum(self._next - self._served, 0.0) * self._number / self.rates
        seconds[self._number == 0] = np.inf
        seconds[np.isnan(seconds)] = np.inf  # nothing left to carry, and no rate
        return seconds

    def _run_to(self, now_s: float) -> None:
        passed_s = now_s - self._now_s
        if passed_s > 0:
            finite = np.where(np.isfinite(self.rates), self.rates, 0.0)
            self._served += finite * (passed_s / 8) / np.maximum(self._number, 1.0)  # (4)
            self._now_s = now_s

    def _settle(self, path: tuple[int, int]) -> None:
        waiting = self._streams[path]
        if (len(waiting) > 0) != (self._number[path] > 0):
            self._are_rates_old = True
        self._number[path] = len(waiting)
        self._next[path] = waiting[0][0] if waiting else math.inf
        self._soonest_s = None
