"""How long groups of this machine's ranks take for given documents: what the planner's cost model is fitted to.

A case is measured on all groups of its degree at the same time, because that is how a step runs them: ranks that share
processor cores, memory or a network slow each other down.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dist_train.data.batches import Batch
from dist_train.engine import autocast
from dist_train.model import loss_sum
from dist_train.sequence.gradients import sum_gradients
from dist_train.sequence.plan import Group, MicroBatch
from dist_train.sequence.share import share_of_rank
from dist_train.sequence.step import query_heads, synchronize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from dist_train.sequence.groups import RankGroups


@dataclass(frozen=True)
class Measured:
    """One group's time for forward and backward."""

    lengths: tuple[int, ...]
    degree: int
    seconds: float
    """The median over repetitions of the group's slowest rank."""
    ranks: tuple[int, ...]


def calibration_cases(ranks: int, heads: int, most_tokens_per_rank: int) -> list[tuple[tuple[int, ...], int]]:
    """Lengths and degrees that tell the cost model's terms apart: one long document, many short ones, few tokens."""
    degrees = [1 << power for power in range(ranks.bit_length()) if 1 << power <= min(ranks, heads)]
    cases = []
    for degree in degrees:
        tokens = most_tokens_per_rank * degree
        for documents, share in ((1, 1), (1, 2), (4, 1), (16, 1), (16, 2), (1, 8)):
            length = max(1, tokens // documents // share)
            cases.append(((length,) * documents, degree))
    return cases


def measure(
    model: nn.Module, ranks: RankGroups, cases: Iterable[tuple[tuple[int, ...], int]], *, repeats: int = 3
) -> list[Measured]:
    """A sample of each case for each group of its degree; the same list on all ranks.

    All ranks call it together. The model's gradients are gone afterwards, its parameters as they were. Each case runs
    once more than `repeats`, to warm up. ValueError when a degree is more than the model's query heads or the ranks.
    """
    samples = []
    for lengths, degree in cases:
        if degree > min(query_heads(model), ranks.count):
            raise ValueError(f"Degree {degree} cannot be measured with {ranks.count} ranks, {query_heads(model)} heads")
        groups = [tuple(range(first, first + degree)) for first in range(0, ranks.count - degree + 1, degree)]
        rank_s = _rank_seconds(model, ranks, lengths, groups, repeats)
        samples += [Measured(lengths, degree, max(rank_s[rank] for rank in group), group) for group in groups]
    model.zero_grad(set_to_none=True)
    return samples


def measure_reduction(model: nn.Module, ranks: RankGroups, *, repeats: int = 3) -> float:
    """Median seconds of summing the gradients after a step's last micro-batch; 0 for a sharded model.

    All ranks call it together. The model's gradients are gone afterwards.
    """
    seconds = []
    for _ in range(repeats + 1):
        model.zero_grad(set_to_none=True)
        ranks.wait_for_all()
        started_s = time.monotonic()
        sum_gradients(model, ranks)
        synchronize(ranks)
        seconds.append(max(ranks.gather(time.monotonic() - started_s)))
    model.zero_grad(set_to_none=True)
    return statistics.median(seconds[1:])


def _rank_seconds(
    model: nn.Module, ranks: RankGroups, lengths: tuple[int, ...], groups: list[tuple[int, ...]], repeats: int
) -> list[float]:
    """The median seconds of every rank, each of `groups` having documents of `lengths`."""
    tokens = torch.zeros(sum(lengths) * len(groups), dtype=torch.int64)
    batch = Batch(tokens, lengths * len(groups))
    held = (tuple(range(i * len(lengths), (i + 1) * len(lengths))) for i in range(len(groups)))
    micro_batch = MicroBatch(tuple(Group(group, mine) for group, mine in zip(groups, held, strict=True)))
    share = share_of_rank(batch, micro_batch, ranks.rank)
    seconds = []
    for _ in range(repeats + 1):
        model.zero_grad(set_to_none=True)
        ranks.wait_for_all()
        started_s = time.monotonic()
        with autocast(model):
            loss = loss_sum(model, share, ranks.group(share.ranks))
        torch.autograd.backward(loss)
        synchronize(ranks)
        seconds.append(time.monotonic() - started_s)
    return ranks.gather(statistics.median(seconds[1:]))
