"""FlexSP's mixed-integer program for one micro-batch, solved by HiGHS for a given time: what the planner is
compared with.

    minimise C  over whole A_qp (sequences of bucket q in group p) and m_p (group p is used), for groups p of
    degree d_p:
    sum_q t_qp A_qp + f_p m_p <= C ;  sum_q s_q A_qp <= E d_p m_p ;  sum_p d_p m_p <= N ;  sum_p A_qp = count of q

Buckets: Q = 16 by dynamic programming, each sequence rounded up to its bucket's longest, as published. Degree 1 is
allowed. The makespan is counted with the true lengths.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from dist_train.sequence.linear_program import LinearProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dist_train.sequence.cost import CostModel
    from dist_train.sequence.ranks import Ranks

BUCKETS = 16


def micro_batch_s(
    lengths: NDArray[np.int64], ranks: Ranks, cost: CostModel, limit_s: float, buckets: int = BUCKETS
) -> float:
    """Seconds of the best grouping found in `limit_s` CPU seconds; infinite when none was found."""
    falling = np.sort(lengths)[::-1]
    edges = bucket_edges(falling, buckets)
    groups = [degree for degree in ranks.degrees for _ in range(len(ranks) // degree)]
    program, longest = LinearProgram(), falling[edges[:-1]]
    counts = np.diff(edges)
    makespan = program.column(cost=1.0)
    used = [program.column(0.0, 1.0, integer=True) for _ in groups]
    placed: dict[tuple[int, int], int] = {}
    for p, degree in enumerate(groups):
        capacity = degree * ranks.capacity_tokens[0]
        for q, tokens in enumerate(longest):
            if tokens <= capacity:
                placed[q, p] = program.column(0.0, float(min(counts[q], capacity // tokens)), integer=True)
        mine = [(q, placed[q, p]) for q in range(len(longest)) if (q, p) in placed]
        fixed_s = cost.fixed_of_s(degree)
        times = [(column, cost.group_s([int(longest[q])], degree) - fixed_s) for q, column in mine]
        program.row([*times, (used[p], fixed_s), (makespan, -1.0)], upper=0.0)
        program.row([*((column, float(longest[q])) for q, column in mine), (used[p], -float(capacity))], upper=0.0)
        if p and groups[p - 1] == degree:
            program.row([(used[p - 1], 1.0), (used[p], -1.0)], 0.0)  # groups of one degree are alike
    program.row([(column, float(degree)) for column, degree in zip(used, groups, strict=True)], upper=float(len(ranks)))
    for q, count in enumerate(counts):
        program.row([(placed[q, p], 1.0) for p in range(len(groups)) if (q, p) in placed], float(count), float(count))
    values = program.solve(limit_s=limit_s).values
    return _makespan(values, placed, falling, edges, groups, cost) if len(values) else float("inf")


def step_s(lengths: NDArray[np.int64], ranks: Ranks, cost: CostModel, limit_s: float, more: int) -> float:
    """Seconds of a step cut and solved as published: M_min to M_min + `more` micro-batches, the fastest of these.

    Sequences sorted by length are cut where the largest token count of a micro-batch is the smallest possible.
    """
    fewest = -(-int(lengths.sum()) // sum(ranks.capacity_tokens))
    return min(
        sum(micro_batch_s(held, ranks, cost, limit_s) for held in cut(lengths, many))
        for many in range(fewest, fewest + more + 1)
    )


def cut(lengths: NDArray[np.int64], many: int) -> list[NDArray[np.int64]]:
    """At most `many` runs of the sorted lengths whose largest token count is the smallest possible."""
    falling = np.sort(lengths)[::-1]
    low, high = max(int(falling[0]), -(-int(falling.sum()) // many)), int(falling.sum())
    while low < high:
        most = (low + high) // 2
        low, high = (low, most) if len(_runs(falling, most)) <= many else (most + 1, high)
    return _runs(falling, low)


def _runs(falling: NDArray[np.int64], most_tokens: int) -> list[NDArray[np.int64]]:
    """As few runs as there can be of at most so many tokens."""
    total, edges = np.concatenate([[0], np.cumsum(falling)]), [0]
    while edges[-1] < len(falling):
        edges.append(int(np.searchsorted(total, total[edges[-1]] + most_tokens, side="right")) - 1)
    return [falling[begin:end] for begin, end in itertools.pairwise(edges)]


def bucket_edges(falling: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Q + 1 positions: the cuts for which rounding each sequence up to its bucket's longest adds the fewest tokens."""
    count = len(falling)
    total = np.concatenate([[0], np.cumsum(falling)]).astype(np.float64)
    best, cut = np.full(count + 1, np.inf), []
    best[0] = 0.0
    for _ in range(min(buckets, count)):
        begin = np.arange(count)
        # added[i, j]: bucket of i .. j - 1
        width = np.arange(count + 1)[None, :] - begin[:, None]
        added = best[:count, None] + np.where(
            width > 0, falling[:, None] * width - (total[None, :] - total[:count, None]), np.inf
        )
        cut.append(np.argmin(added, axis=0))
        best = np.min(added, axis=0)
    edges = [count]
    for choice in reversed(cut):
        edges.append(int(choice[edges[-1]]))
    return np.array(sorted(set(edges)))


def _makespan(  # noqa: PLR0917 - as many as there are options
    values: NDArray[np.float64],
    placed: dict[tuple[int, int], int],
    falling: NDArray[np.int64],
    edges: NDArray[np.int64],
    groups: list[int],
    cost: CostModel,
) -> float:
    held: list[list[int]] = [[] for _ in groups]
    position = list(edges[:-1])
    for (q, p), column in sorted(placed.items()):
        many = round(values[column])
        held[p] += [int(length) for length in falling[position[q] : position[q] + many]]
        position[q] += many
    return max(cost.group_s(lengths, degree) for lengths, degree in zip(held, groups, strict=True))
