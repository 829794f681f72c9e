"""One step of a replica's ranks by a plan: the loss and the gradients of the whole step, whatever the plan.

    L = (1/T) sum over micro-batches, ranks and their targets of -log p(target),    T = targets of the whole step    (1)
    g = sum over ranks of dL/dw through the rank's own targets                                                       (2)

T is known from the lengths before anything runs, so no rank ever averages; (2) holds because what a rank's targets owe
to another rank's tokens comes back through the all-to-alls of attention. Sums aside, whose terms come in another
order, L and g are those of one process that trains on the whole batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dist_train.data.batches import NO_TARGET
from dist_train.engine import autocast
from dist_train.model import loss_sum
from dist_train.sequence.gradients import release, sum_gradients
from dist_train.sequence.share import check_plan, share_of_rank

if TYPE_CHECKING:
    from torch import nn

    from dist_train.data.batches import Batch
    from dist_train.sequence.groups import RankGroups
    from dist_train.sequence.plan import SequencePlan


@dataclass(frozen=True)
class StepResult:
    """The same loss on all ranks, and this rank's seconds."""

    loss: float
    """L, in nats."""
    measured_s: float
    """From the first micro-batch to the summed gradients."""
    reduce_s: float
    """The part of it after this rank's last micro-batch: waiting for slower ranks, and summing."""


def accumulate(model: nn.Module, batch: Batch, plan: SequencePlan, ranks: RankGroups) -> StepResult:
    """Puts the gradient of the mean loss of `batch` in place of any gradient there was, as `plan` says.

    All ranks of the replica call it together, with the same batch and plan. It takes the place of
    `InnerOptimizer.accumulate`. ValueError when the plan does not fit the batch, the ranks or the model. Blocks until
    the device is done.
    """
    check_plan(plan, batch.document_lengths, ranks=ranks.count, heads=query_heads(model))
    model.zero_grad(set_to_none=True)
    started_s, total = time.monotonic(), torch.zeros((), dtype=torch.float64, device=ranks.device)
    for micro_batch in plan.micro_batches:
        share = share_of_rank(batch, micro_batch, ranks.rank)
        with autocast(model):
            loss = loss_sum(model, share, ranks.group(share.ranks)) / max(1, batch.num_targets)  # (1)
        torch.autograd.backward(loss)
        total += loss.detach()
    synchronize(ranks)
    computed_s = time.monotonic()
    sum_gradients(model, ranks)  # (2)
    ranks.sum(total)
    loss_value = total.item()
    ended_s = time.monotonic()
    return StepResult(loss_value, ended_s - started_s, ended_s - computed_s)


@torch.no_grad()
def evaluate(model: nn.Module, batch: Batch, plan: SequencePlan, ranks: RankGroups) -> tuple[float, int]:
    """This rank's part of the sum of the losses of `batch` (nats) by `plan`, and how many targets that part has.

    All ranks of the replica call it together. The model stays as it was. ValueError as `accumulate`.
    """
    check_plan(plan, batch.document_lengths, ranks=ranks.count, heads=query_heads(model))
    was_training, total, num_targets = model.training, 0.0, 0
    model.eval()
    try:
        for micro_batch in plan.micro_batches:
            share = share_of_rank(batch, micro_batch, ranks.rank)
            with autocast(model):
                total += loss_sum(model, share, ranks.group(share.ranks)).item()
            num_targets += int((share.targets != NO_TARGET).sum())
    finally:
        model.train(was_training)
        release(model)
    return total, num_targets


def query_heads(model: nn.Module) -> int:
    """The query heads of a transformers model: the largest degree that a group may have."""
    return int(model.config.num_attention_heads)  # type: ignore[arg-type,union-attr]


def synchronize(ranks: RankGroups) -> None:
    """Waits until the device of this rank has done what it was told."""
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
