"""What one rank holds of a step: its tokens in each micro-batch of the plan, and with whom it shares them.

    a group's sequences, in the plan's order, one after the other:   n tokens
    its rank j holds tokens  n j // d  to  n (j + 1) // d            positions restart in every document
                                                                     targets are those of the whole document

A target may thus lie on the next rank; it was taken from the document before the cut. A rank that has no token, because
it is idle or because its group has fewer tokens than ranks, holds one filler without a target instead: the model runs
on it, so that this rank takes part in all that ranks do together, and its gradients are exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dist_train.data.batches import NO_TARGET, Batch
from dist_train.sequence.ulysses import share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.sequence.plan import Group, MicroBatch, SequencePlan


@dataclass(frozen=True, eq=False)
class Share:
    """A rank's part of a micro-batch."""

    tokens: Tensor
    """(n_j,) int64, at least one."""
    position_ids: Tensor
    """(n_j,) int64, each token's position in its document."""
    targets: Tensor
    """(n_j,) int64, the token that follows in the same document; NO_TARGET where there is none."""
    document_lengths: tuple[int, ...]
    """Of the whole group; their sum is n."""
    ranks: tuple[int, ...]
    """The group; this rank alone where it is idle."""


def share_of_rank(batch: Batch, micro_batch: MicroBatch, rank: int) -> Share:
    """What `rank` holds in `micro_batch` of a step that trains on `batch`."""
    group = next((group for group in micro_batch.groups if rank in group.ranks), None)
    if group is None:
        return _filler((1,), (rank,))
    lengths = tuple(batch.document_lengths[sequence] for sequence in group.sequences)
    own = share_of(sum(lengths), group.ranks.index(rank), len(group.ranks))
    if not own:
        return _filler(lengths, group.ranks)
    where = _tokens_of(batch, group)[own.start : own.stop]
    return Share(batch.tokens[where], batch.position_ids[where], batch.targets[where], lengths, group.ranks)


def check_plan(plan: SequencePlan, lengths: Sequence[int], *, ranks: int, heads: int) -> None:
    """ValueError unless every one of `lengths` is in one place of `plan` and all groups can be.

    It is the same on every rank, so that none waits for one that has refused. `heads` are the model's query heads.
    """
    placed = [i for micro_batch in plan.micro_batches for group in micro_batch.groups for i in group.sequences]
    if sorted(placed) != list(range(len(lengths))):
        raise ValueError(
            f"The {plan.planner} plan places {len(placed)} sequences, {len(set(placed))} different ones, "
            f"of a step that has {len(lengths)}; each must be placed once"
        )
    for number, micro_batch in enumerate(plan.micro_batches):
        where = f"Micro-batch {number} of the {plan.planner} plan"
        busy = [rank for group in micro_batch.groups for rank in group.ranks]
        if len(set(busy)) != len(busy) or not set(busy) <= set(range(ranks)):
            raise ValueError(f"{where} uses ranks {busy} of a replica of {ranks}; each may be used once")
        for group in micro_batch.groups:
            _check_group(group, where, heads)


def _check_group(group: Group, where: str, heads: int) -> None:
    degree, first = len(group.ranks), min(group.ranks, default=0)
    if group.ranks != tuple(range(first, first + degree)) or degree.bit_count() != 1 or first % degree:
        raise ValueError(
            f"{where} has a group of ranks {group.ranks}; a group is a power of two of consecutive ranks, "
            f"the first of them a multiple of their number"
        )
    if not group.sequences:
        raise ValueError(f"{where} gives ranks {group.ranks} no sequence; leave them out, and they are idle")
    if degree > heads:
        raise ValueError(
            f"{where} has a group of {degree} ranks for a model of {heads} query heads, and each rank needs one; "
            f"plan with degrees up to {heads}, or train a model with more heads"
        )


def _filler(lengths: tuple[int, ...], ranks: tuple[int, ...]) -> Share:
    zero = torch.zeros(1, dtype=torch.int64)
    return Share(zero, zero, torch.tensor([NO_TARGET]), lengths, ranks)


def _tokens_of(batch: Batch, group: Group) -> Tensor:
    """Where the tokens of the group are in `batch`."""
    stops = torch.tensor(batch.document_lengths).cumsum(0).tolist()
    return torch.cat([torch.arange(stops[i] - batch.document_lengths[i], stops[i]) for i in group.sequences])
