"""Several ranks that each hold the whole model and take their share of each batch's documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dist_train.data.batches import Batch, part_of
from dist_train.inner import InnerOptimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.config import InnerConfig
    from dist_train.crew import Crew


class SharedOptimizer(InnerOptimizer):
    """Trains `model`, which every rank of `crew` has, in place: gradients are summed over the ranks."""

    def __init__(self, model: nn.Module, config: InnerConfig, total_steps: int, crew: Crew) -> None:
        super().__init__(model, config, total_steps)
        self._crew = crew

    def accumulate(self, batch: Batch) -> float:
        """The gradient of this rank's documents, then the sum over all ranks."""
        self.model.zero_grad(set_to_none=True)
        share = shares_of(batch.document_lengths, self._crew.ranks)[self._crew.rank]
        loss = self._add_gradient(part_of(batch, share), batch.num_targets).item() if share else 0.0
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._crew.add([p.grad for p in self._parameters.values() if p.grad is not None])
        return loss

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Of every batch whose turn is this rank's."""
        return super().evaluate(batches[self._crew.rank :: self._crew.ranks])


def shares_of(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The documents of each rank, by their index: the longest first, each to the rank that has least."""
    shares, loads = [list[int]() for _ in range(ranks)], [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    return shares
