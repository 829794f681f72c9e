"""The greedy: sequences into groups, under a time limit for each micro-batch.

Longest sequence first. Each goes into the open group where it costs the fewest device-seconds, of equals the
fullest one;
else a group is opened: the smallest degree that can hold it in time, in the micro-batch with the highest limit. Groups
above `join_degree` (across machines, say) are joined only when nothing can be opened.

Time O(K (groups + slots)). A function of its arguments alone: no clock, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dist_train.sequence.problem import Problem

TOLERANCE_S = 1e-9
"""Sums of seconds in another order differ by rounding."""


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
        self._slot_first = np.array([slot.first for slot in problem.slots])
        self._slot_degree = np.array([slot.degree for slot in problem.slots])

    def pack(self, limits_s: NDArray[np.float64], join_degree: int) -> Packing | None:
        """A packing in which no micro-batch takes longer than its limit, or None. `limits_s` (M,), falling."""
        self.calls += 1
        problem, count = self.problem, len(limits_s)
        free = np.full(count, len(problem.ranks), np.int64)
        is_uniform = problem.ranks.is_uniform
        busy = np.zeros((count, 1 if is_uniform else len(problem.slots)), np.bool_)
        groups = _pack(
            problem.lengths, problem.seconds, problem.fixed_s, problem.degree, problem.capacity, problem.first_slot,
            self._slot_first, self._slot_degree, is_uniform, limits_s, join_degree, free, busy,
            self._group_of, self._micro_batch, self._kind, self._slot, self._tokens, self._seconds,
        )  # fmt: skip
        return self._packing(groups, count) if groups >= 0 else None

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
def _pack(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0917 - one loop, compiled for each type
    lengths, seconds, fixed_s, degree, capacity, first_slot, slot_first, slot_degree, is_uniform, limits_s, join_degree,
    free, busy, group_of, micro_batch, kind, slot, held_tokens, held_s,
):  # fmt: skip
    """Number of groups, or -1 when a sequence found no place. Fills the arrays of its last two lines."""
    groups = 0
    for k in range(len(lengths)):
        tokens = lengths[k]
        best, best_cost, best_room = -1, np.inf, np.int64(0)
        last, last_cost, last_room = -1, np.inf, np.int64(0)
        for g in range(groups):
            c = kind[g]
            room = capacity[c] - held_tokens[g] - tokens
            if room < 0 or held_s[g] + seconds[k, c] > limits_s[micro_batch[g]] + TOLERANCE_S:
                continue
            cost = seconds[k, c] * degree[c]
            if degree[c] <= join_degree:
                if cost < best_cost or (cost == best_cost and room < best_room):
                    best, best_cost, best_room = g, cost, room
            elif cost < last_cost or (cost == last_cost and room < last_room):
                last, last_cost, last_room = g, cost, room
        if best < 0:
            at, of_kind, in_slot = -1, len(degree), -1
            for m in range(len(limits_s)):
                for c in range(of_kind):
                    if at >= 0 and degree[c] >= degree[of_kind]:
                        break
                    if degree[c] > free[m]:
                        break
                    if tokens > capacity[c] or fixed_s[c] + seconds[k, c] > limits_s[m] + TOLERANCE_S:
                        continue
                    if is_uniform:
                        at, of_kind = m, c
                        break
                    found = -1
                    for place in range(first_slot[c], first_slot[c + 1]):
                        if not busy[m, place]:
                            found = place
                            break
                    if found >= 0:
                        at, of_kind, in_slot = m, c, found
                        break
            if at >= 0:
                best = groups
                groups += 1
                micro_batch[best], kind[best], slot[best] = at, of_kind, in_slot
                held_tokens[best], held_s[best] = 0, fixed_s[of_kind]
                free[at] -= degree[of_kind]
                if not is_uniform:
                    begin, end = slot_first[in_slot], slot_first[in_slot] + slot_degree[in_slot]
                    for other in range(len(slot_first)):
                        if slot_first[other] < end and begin < slot_first[other] + slot_degree[other]:
                            busy[at, other] = True
            elif last >= 0:
                best = last
            else:
                return -1
        group_of[k] = best
        held_tokens[best] += tokens
        held_s[best] += seconds[k, kind[best]]
    return groups
