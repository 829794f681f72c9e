"""The greedy: sequences into groups, under a time limit for each micro-batch.

Longest sequence first. Each goes into the open group where it costs the fewest device-seconds, of equals the fullest
one; else a group is opened: the smallest degree that can hold it in time, in the micro-batch with the highest limit.
Groups above `join_degree` (across machines, say) are joined only when nothing can be opened. Where nothing is in time,
the micro-batch that is late by the least gets a higher limit, as long as all limits together stay within a budget.

`Packer.trade` calls the greedy many times with limits changed a little at random (simulated annealing): Python would
need as long for each change as the greedy itself.

Time O(K (groups + slots)). A function of its arguments alone: no clock, random numbers from a seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dist_train.sequence.problem import Problem

TOLERANCE_S = 1e-9
"""Sums of seconds in another order differ by rounding."""
TRADE = 0.06
"""The most that a trade changes a limit by, as a part of it."""
LOWERED = 0.6
"""How often a trade lowers a micro-batch's limit."""
OTHER_JOIN = 0.05
"""How often it tries the other join degree."""
WORSE = 0.003
"""The most that a trade may lose, as a part of the step, at the beginning; nothing at the end."""
RETURN = 1000
"""Calls after which the search goes back to the best packing."""


@dataclass(frozen=True)
class Packing:
    """A feasible assignment. Groups are numbered as they were opened."""

    group_of: NDArray[np.int64]
    """(K,) the group of each sequence."""
    micro_batch: NDArray[np.int64]
    """(G,)"""
    kind: NDArray[np.int64]
    """(G,) the kind of slot it needs."""
    slot: NDArray[np.int64]
    """(G,) the slot where it stands, or -1 when any free one of its kind will do."""
    micro_batch_s: NDArray[np.float64]
    """(M,) seconds of the slowest group; micro-batches that hold nothing are left out."""

    @property
    def step_s(self) -> float:
        """Predicted seconds of the step."""
        return float(self.micro_batch_s.sum())


class Packer:
    """The greedy on one problem, with its work space, and a count of what it cost."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.calls = 0
        count = len(problem.lengths)
        self._group_of, self._kind = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._micro_batch, self._slot = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._tokens, self._seconds = np.zeros(count, np.int64), np.zeros(count)
        self._filled = (
            self._group_of, self._micro_batch, self._kind, self._slot, self._tokens, self._seconds,
            np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64),
        )  # fmt: skip
        self._slot_first = np.array([slot.first for slot in problem.slots])
        self._slot_degree = np.array([slot.degree for slot in problem.slots])

    def pack(self, limits_s: NDArray[np.float64], join_degree: int, budget_s: float = 0.0) -> Packing | None:
        """A packing in which no micro-batch takes longer than its limit, or None. `limits_s` (M,), falling. With a
        budget above their sum, limits are raised by what the budget leaves."""
        self.calls += 1
        limits_s = limits_s.copy()
        groups = _pack(*self._given(len(limits_s)), join_degree, budget_s, limits_s, *self._filled)
        return self._packing(groups, len(limits_s)) if groups >= 0 else None

    def trade(
        self, limits_s: NDArray[np.float64], join_degrees: tuple[int, int], calls: int, seed: int
    ) -> Packing | None:
        """The fastest packing of `calls` that start from `limits_s` and change them at random; None if none packs."""
        self.calls += calls
        join_degree, found = _trade(*self._given(len(limits_s)), join_degrees, limits_s, calls, seed, *self._filled)
        return self.pack(found, join_degree, math.inf)

    def _given(self, count: int) -> tuple[object, ...]:
        problem = self.problem
        is_uniform = problem.ranks.is_uniform
        return (
            problem.lengths, problem.seconds, problem.fixed_s, problem.degree, problem.capacity, problem.first_slot,
            self._slot_first, self._slot_degree, is_uniform, np.zeros(count, np.int64),
            np.zeros((count, 1 if is_uniform else len(problem.slots)), np.bool_), len(problem.ranks),
        )  # fmt: skip

    def _packing(self, groups: int, count: int) -> Packing:
        taken = np.zeros(count)
        np.maximum.at(taken, self._micro_batch[:groups], self._seconds[:groups])
        return Packing(
            self._group_of.copy(), self._micro_batch[:groups].copy(), self._kind[:groups].copy(),
            self._slot[:groups].copy(), taken,
        )  # fmt: skip


def without_empty(packing: Packing) -> Packing:
    """The packing without micro-batches that hold nothing."""
    held = packing.micro_batch_s > 0
    number = np.cumsum(held) - 1
    return replace(packing, micro_batch=number[packing.micro_batch], micro_batch_s=packing.micro_batch_s[held])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _place(c, m, first_slot, busy):  # type: ignore[no-untyped-def]
    """A free slot of kind c in micro-batch m, or -1."""
    for place in range(first_slot[c], first_slot[c + 1]):
        if not busy[m, place]:
            return place
    return -1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pack(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915, PLR0917 - one loop, compiled for each type
    lengths, seconds, fixed_s, degree, capacity, first_slot, slot_first, slot_degree, is_uniform, free, busy, ranks,
    join_degree, budget_s, limits_s, group_of, micro_batch, kind, slot, held_tokens, held_s, active, waking, after,
):  # fmt: skip
    """Number of groups, or -1 when a sequence found no place. Fills the arrays from `group_of` on, raises limits.

    A group without room for a sequence sleeps until the first one that fits: `waking` (K,) has the first group that
    wakes at each sequence, or -1, and `after` the next of them.
    """
    groups, many, shortest = 0, 0, lengths[-1]
    waking[:] = -1
    free[:] = ranks
    busy[:] = False
    left_s = budget_s - limits_s.sum()
    for k in range(len(lengths)):
        tokens = lengths[k]
        best, best_cost, best_room = -1, np.inf, np.int64(0)
        last, last_cost, last_room = -1, np.inf, np.int64(0)
        awake = waking[k]
        while awake >= 0:
            active[many] = awake
            many += 1
            awake = after[awake]
        i = 0
        while i < many:
            g = active[i]
            c = kind[g]
            room = capacity[c] - held_tokens[g] - tokens
            if room < 0:
                many -= 1
                active[i] = active[many]
                if room + tokens >= shortest:  # else it is full
                    low, high = k + 1, len(lengths) - 1
                    while low < high:
                        between = (low + high) // 2
                        if lengths[between] <= room + tokens:
                            high = between
                        else:
                            low = between + 1
                    after[g] = waking[low]
                    waking[low] = g
                continue
            i += 1
            if held_s[g] + seconds[k, c] > limits_s[micro_batch[g]] + TOLERANCE_S:
                continue
            cost = seconds[k, c] * degree[c]
            if degree[c] <= join_degree:
                if cost < best_cost or (cost == best_cost and (room < best_room or (room == best_room and g < best))):
                    best, best_cost, best_room = g, cost, room
            elif cost < last_cost or (cost == last_cost and (room < last_room or (room == last_room and g < last))):
                last, last_cost, last_room = g, cost, room
        at, of_kind, in_slot = -1, len(degree), -1
        if best < 0:
            for m in range(len(limits_s)):
                for c in range(of_kind):
                    if at >= 0 and degree[c] >= degree[of_kind]:
                        break
                    if degree[c] > free[m]:
                        break
                    if tokens > capacity[c] or fixed_s[c] + seconds[k, c] > limits_s[m] + TOLERANCE_S:
                        continue
                    found = -1 if is_uniform else _place(c, m, first_slot, busy)
                    if is_uniform or found >= 0:
                        at, of_kind, in_slot = m, c, found
                        break
            if at < 0:
                best = last
        if best < 0 and at < 0:
            least_s = np.inf
            for i in range(many):
                g = active[i]
                late_s = held_s[g] + seconds[k, kind[g]] - limits_s[micro_batch[g]]
                if held_tokens[g] + tokens <= capacity[kind[g]] and late_s < least_s:
                    least_s, best = late_s, g
            for m in range(len(limits_s)):
                for c in range(len(degree)):
                    late_s = fixed_s[c] + seconds[k, c] - limits_s[m]
                    if degree[c] > free[m] or tokens > capacity[c] or late_s >= least_s:
                        continue
                    found = -1 if is_uniform else _place(c, m, first_slot, busy)
                    if is_uniform or found >= 0:
                        least_s, at, of_kind, in_slot = late_s, m, c, found
            if least_s > left_s or least_s == np.inf:  # no budget is enough where there is no room
                return -1
            left_s -= least_s
            limits_s[at if at >= 0 else micro_batch[best]] += least_s
        if at >= 0:
            best = groups
            active[many] = best
            groups += 1
            many += 1
            micro_batch[best], kind[best], slot[best] = at, of_kind, in_slot
            held_tokens[best], held_s[best] = 0, fixed_s[of_kind]
            free[at] -= degree[of_kind]
            if not is_uniform:
                begin, end = slot_first[in_slot], slot_first[in_slot] + slot_degree[in_slot]
                for other in range(len(slot_first)):
                    if slot_first[other] < end and begin < slot_first[other] + slot_degree[other]:
                        busy[at, other] = True
        group_of[k] = best
        held_tokens[best] += tokens
        held_s[best] += seconds[k, kind[best]]
    return groups


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _trade(  # type: ignore[no-untyped-def]  # noqa: PLR0917 - as many as _pack has
    lengths, seconds, fixed_s, degree, capacity, first_slot, slot_first, slot_degree, is_uniform, free, busy, ranks,
    join_degrees, start_s, calls, seed, group_of, micro_batch, kind, slot, held_tokens, held_s, active, waking, after,
):  # fmt: skip
    """The join degree and the limits (not yet raised) of the fastest packing found."""
    np.random.seed(seed)
    fixed, now, best, given = fixed_s.min(), start_s.copy(), start_s.copy(), start_s.copy()
    now_s, best_s, join, best_join, tried = np.inf, np.inf, 0, 0, 0
    taken = np.zeros(len(now))
    for call in range(calls):
        if call % RETURN == RETURN - 1:
            now, now_s, join = best.copy(), best_s, best_join
        limits_s, tried = now.copy(), join
        if np.random.random() < OTHER_JOIN:
            tried = 1 - join
        size = TRADE * np.random.random() if now_s < np.inf else 0.0
        for m in range(len(now)):
            if np.random.random() < LOWERED:
                limits_s[m] = fixed + (now[m] - fixed) * (1 - size * np.random.random())
        for _ in range(np.random.randint(3)):
            m = np.random.randint(len(now))
            limits_s[m] = fixed + (now[m] - fixed) * (1 + size * np.random.random())
        budget_s = now_s * (1 + WORSE * np.random.random() * (1 - call / calls))
        if limits_s.sum() > budget_s:
            continue
        wanted_s = limits_s.copy()
        groups = _pack(
            lengths, seconds, fixed_s, degree, capacity, first_slot, slot_first, slot_degree, is_uniform, free, busy,
            ranks, join_degrees[tried], budget_s, limits_s, group_of, micro_batch, kind, slot, held_tokens, held_s,
            active, waking, after,
        )  # fmt: skip
        if groups < 0:
            continue
        taken[:] = 0
        for g in range(groups):
            taken[micro_batch[g]] = max(taken[micro_batch[g]], held_s[g])
        now, now_s, join = np.maximum(taken, fixed), taken.sum(), tried
        if now_s < best_s:
            best, best_s, best_join, given = now.copy(), now_s, tried, wanted_s
    return join_degrees[best_join], given
