"""How the ranks of a replica compute the gradient of a batch, and the loss on validation documents.

An engine is called by every rank of its replica with the same batch, at the same time, and leaves on each the gradient
of the parameters which that rank hosts. However the work is dealt out, it is the gradient of one number:

    g = d/dw  (1/T) sum over documents of loss_sum,   T = targets of the whole batch            (1)

    LocalEngine     a replica of one rank
    SharedEngine    several ranks that each hold the whole model; every document goes to one of them
    SequenceEngine  the same, with documents scattered over ranks as a plan says (sequence/engine.py)
    PipelineEngine  ranks that each hold a span of layers (pipeline/engine.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dist_train.crew import Crew
from dist_train.data.batches import Batch, micro_batches, part_of
from dist_train.dealing import dealt
from dist_train.model import every_gradient, loss_sum
from dist_train.predicted_traffic import PredictedTraffic, ring_sum_bytes


class Engine(Protocol):
    """What `InnerOptimizer` and `validate` need of the ranks."""

    def expect(self, lengths: Sequence[int] | None) -> None:
        """Is told, before `gradient`, which document lengths the batch after that one has; None when it is the last."""
        ...

    def gradient(self, batch: Batch) -> float:
        """Leaves the gradient (1) of `batch` in place of any there was; returns this rank's share of its mean loss.

        The shares of the ranks add up to the mean loss (nats): who wants to know it pays for asking, once a round. A
        batch without targets has zero gradients and loss 0. Blocks until the device is done.
        """
        ...

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """This rank's part of the sum of the losses of `batches` (nats), and how many targets that part has."""
        ...

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of the replica's whole gradient, a scalar, of which this rank hosts `gradients`."""
        ...

    def figures(self) -> dict[str, float]:
        """Health of what was computed since this was last asked, for the metrics."""
        ...


class LocalEngine:
    """A replica of one rank."""

    def __init__(self, model: nn.Module, micro_batch_tokens: int | None = None) -> None:
        self._model = model
        self._micro_batch_tokens = micro_batch_tokens

    def expect(self, lengths: Sequence[int] | None) -> None:
        """Plans nothing."""

    def gradient(self, batch: Batch) -> float:
        """The gradient of the whole batch."""
        self._model.zero_grad(set_to_none=True)
        return accumulate(self._model, batch, self._micro_batch_tokens, batch.num_targets).item()

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Of all batches."""
        return evaluate(self._model, batches)

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients."""
        return get_total_norm(gradients)

    def figures(self) -> dict[str, float]:
        """None."""
        return {}


class SharedEngine:
    """Ranks that each hold the whole model and take their share of each batch's documents; gradients are summed."""

    def __init__(self, model: nn.Module, crew: Crew, micro_batch_tokens: int | None = None) -> None:
        self._model = model
        self._crew = crew
        self._micro_batch_tokens = micro_batch_tokens
        self._predicted = PredictedTraffic()

    def expect(self, lengths: Sequence[int] | None) -> None:
        """Plans nothing."""

    def gradient(self, batch: Batch) -> float:
        """This rank's documents, then the sum over all ranks."""
        self._model.zero_grad(set_to_none=True)
        share = dealt(batch.document_lengths, self._crew.ranks)[self._crew.rank]
        loss = 0.0
        if share:
            mine = part_of(batch, share)
            loss = accumulate(self._model, mine, self._micro_batch_tokens, batch.num_targets).item()
        gradients = every_gradient(self._model)
        self._crew.add(gradients)
        self._predicted.add({"intra_replica": ring_sum_bytes(sum(g.nbytes for g in gradients), self._crew.ranks)})
        return loss

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Of every batch whose turn is this rank's."""
        return evaluate(self._model, batches[self._crew.rank :: self._crew.ranks])

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients, which every rank has."""
        return get_total_norm(gradients)

    def figures(self) -> dict[str, float]:
        """What all ranks should have sent."""
        return self._predicted.figures()


def accumulate(model: nn.Module, batch: Batch, micro_batch_tokens: int | None, num_targets: int) -> Tensor:
    """Adds the gradient of (sum of the losses of `batch`) / `num_targets` to the parameters'; returns that quotient."""
    total = torch.zeros(())
    for micro_batch in micro_batches(batch, micro_batch_tokens):
        with autocast(model):
            loss = loss_sum(model, micro_batch) / max(1, num_targets)  # (1)
        torch.autograd.backward(loss)
        total = total.to(loss) + loss.detach()
    return total


@torch.no_grad()
def evaluate(model: nn.Module, batches: Sequence[Batch]) -> tuple[float, int]:
    """Sum of the next-token losses of `batches` (nats), and how many targets they are. The model stays as it was."""
    was_training, total, num_targets = model.training, 0.0, 0
    model.eval()
    try:
        for batch in batches:
            with autocast(model):
                total += loss_sum(model, batch).item()
            num_targets += batch.num_targets
    finally:
        model.train(was_training)
    return total, num_targets


def autocast(model: nn.Module) -> torch.autocast:
    """bf16 on a GPU; on the CPU whatever the parameters are."""
    device_type = next(model.parameters()).device.type
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=device_type == "cuda")
