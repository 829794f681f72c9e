"""One step's planning problem in arrays: lengths falling, kinds of slots, and seconds of each sequence in each kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_train.sequence.errors import PlanningError
from dist_train.sequence.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dist_train.sequence.cost import CostModel
    from dist_train.sequence.ranks import Slot


@dataclass(frozen=True)
class Problem:
    """K sequences, C kinds of slots. Slots are of one kind when they have the same degree, speed and capacity and stand
    on the same kinds of ranks; kinds are in the order of their degrees, then of their speeds."""

    lengths: NDArray[np.int64]
    """(K,) tokens, falling."""
    order: NDArray[np.int64]
    """(K,) where each of them stands in the step's list."""
    ranks: Ranks
    slots: tuple[Slot, ...]
    """Kind after kind."""
    first_slot: NDArray[np.int64]
    """(C + 1,) where each kind begins in `slots`."""
    degree: NDArray[np.int64]
    """(C,)"""
    capacity: NDArray[np.int64]
    """(C,) tokens of a group."""
    fixed_s: NDArray[np.float64]
    """(C,) seconds of a group that holds next to nothing."""
    seconds: NDArray[np.float64]
    """(K, C) what each sequence adds to its group's time."""
    on_kind: NDArray[np.int64]
    """(C, R) how many ranks of each kind (speed, capacity) a slot stands on."""
    rank_kinds: NDArray[np.int64]
    """(R,) ranks of each kind."""

    @property
    def fewest_micro_batches(self) -> int:
        """M_min: what the tokens need when nothing is wasted."""
        total = sum(self.ranks.capacity_tokens)
        return max(1, -(-int(self.lengths.sum()) // total))


def problem_of(
    lengths: Sequence[int] | NDArray[np.int64], ranks: Ranks, cost: CostModel, degrees: Sequence[int] = ()
) -> Problem:
    """The problem of a step; only groups of `degrees`, if any are given. PlanningError when a sequence cannot fit."""
    given = np.asarray(lengths, dtype=np.int64)
    if given.ndim != 1 or not len(given):
        raise PlanningError("a step needs at least one sequence, and its lengths in one list")
    if given.min() < 1:
        raise PlanningError(f"sequence {int(given.argmin())} has {int(given.min())} tokens: each needs at least 1")
    allowed = tuple(degrees) or ranks.degrees
    kinds = _kinds(ranks, allowed)
    _check_fit(given, ranks, allowed, max(slot.capacity_tokens for kind in kinds for slot in kind))
    order = np.argsort(-given, kind="stable")
    falling = given[order]
    rank_kinds = sorted(set(zip(ranks.speed, ranks.capacity_tokens, strict=True)))
    computed = cost.computation_s(falling)
    columns = [
        (computed / kind[0].speed + cost.communication_s(kind[0].degree) * falling) / kind[0].degree for kind in kinds
    ]
    return Problem(
        lengths=falling,
        order=order,
        ranks=ranks,
        slots=tuple(slot for kind in kinds for slot in kind),
        first_slot=np.cumsum([0, *(len(kind) for kind in kinds)]),
        degree=np.array([kind[0].degree for kind in kinds]),
        capacity=np.array([kind[0].capacity_tokens for kind in kinds]),
        fixed_s=np.array([cost.fixed_of_s(kind[0].degree) for kind in kinds]),
        seconds=np.ascontiguousarray(np.stack(columns, axis=1)),
        on_kind=np.array([[_count(kind[0], ranks, one) for one in rank_kinds] for kind in kinds]),
        rank_kinds=np.array([sum(_count(slot, ranks, one) for slot in _singles(ranks)) for one in rank_kinds]),
    )


def sample_of(problem: Problem, cost: CostModel, ranks: int) -> Problem | None:
    """A step of at least `ranks` ranks and as large a part of the sequences, every f-th of them: its micro-batches are
    about those of the whole. None when the ranks are unequal or not twice as many, or the longest sequence needs more
    of them."""
    part = 1
    while problem.ranks.is_uniform and len(problem.ranks) >= 2 * part * ranks:
        if problem.lengths[0] * 2 * part > sum(problem.ranks.capacity_tokens):
            break
        part *= 2
    if part == 1:
        return None
    few, all_ranks = len(problem.ranks) // part, problem.ranks
    sampled = Ranks(all_ranks.capacity_tokens[:few], all_ranks.speed[:few], all_ranks.max_degree)
    return problem_of(problem.lengths[part // 2 :: part], sampled, cost)


def _singles(ranks: Ranks) -> tuple[Slot, ...]:
    return tuple(slot for slot in ranks.slots if slot.degree == 1)


def _count(slot: Slot, ranks: Ranks, kind: tuple[float, int]) -> int:
    return sum((ranks.speed[rank], ranks.capacity_tokens[rank]) == kind for rank in slot.ranks)


def _kinds(ranks: Ranks, degrees: Sequence[int]) -> list[list[Slot]]:
    grouped: dict[tuple[object, ...], list[Slot]] = {}
    for slot in ranks.slots:
        if slot.degree in degrees:
            stands_on = tuple(sorted((ranks.speed[rank], ranks.capacity_tokens[rank]) for rank in slot.ranks))
            grouped.setdefault((slot.degree, slot.speed, slot.capacity_tokens, stands_on), []).append(slot)
    if not grouped:
        raise PlanningError(
            f"no group of degree {' or '.join(map(str, degrees))} fits on {len(ranks)} ranks, or max_degree forbids it"
        )
    return [grouped[key] for key in sorted(grouped)]


def _check_fit(lengths: NDArray[np.int64], ranks: Ranks, degrees: Sequence[int], largest_tokens: int) -> None:
    """PlanningError that names the longest sequence when no slot can hold it."""
    at = int(lengths.argmax())
    if lengths[at] <= largest_tokens:
        return
    widest = max(degree for degree in degrees if degree <= len(ranks))
    raise PlanningError(
        f"sequence {at} of {int(lengths[at])} tokens does not fit: the largest group (degree {widest}) holds "
        f"{largest_tokens} tokens. It would need {-(-int(lengths[at]) // widest)} tokens a rank at degree {widest} "
        f"(a rank may hold {max(ranks.capacity_tokens)}), more ranks, a larger degree, or a shorter sequence"
    )
