"""From kinds of slots to ranks: where each group of a packing stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dist_train.sequence.plan import Group, MicroBatch

if TYPE_CHECKING:
    from dist_train.sequence.packing import Packing
    from dist_train.sequence.problem import Problem


def placed(problem: Problem, packing: Packing) -> tuple[MicroBatch, ...]:
    """The packing's groups on ranks; micro-batches and groups in the order of their first ranks, sequences as given."""
    members: list[list[int]] = [[] for _ in packing.kind]
    for k, group in enumerate(packing.group_of):
        members[group].append(int(problem.order[k]))
    return tuple(
        MicroBatch(
            tuple(
                Group(ranks, tuple(sorted(members[group])))
                for group, ranks in sorted(_ranks(problem, packing, m).items(), key=lambda entry: entry[1])
            )
        )
        for m in range(len(packing.micro_batch_s))
    )


def _ranks(problem: Problem, packing: Packing, micro_batch: int) -> dict[int, tuple[int, ...]]:
    groups = [int(group) for group in np.nonzero(packing.micro_batch == micro_batch)[0]]
    if not problem.ranks.is_uniform:
        return {group: problem.slots[packing.slot[group]].ranks for group in groups}
    # Largest degrees first, side by side: each then begins at a multiple of its degree.
    ranks, first = {}, 0
    for group in sorted(groups, key=lambda one: (-problem.degree[packing.kind[one]], one)):
        degree = int(problem.degree[packing.kind[group]])
        ranks[group] = tuple(range(first, first + degree))
        first += degree
    return ranks
