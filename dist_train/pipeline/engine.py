"""The engine of a replica whose layers are spread over stages: 1F1B of torch.distributed.pipelining.

    gradient(batch):   every stage has the same batch, cuts it in the same m micro-batches and runs the schedule;
                       loss and gradients are those of the whole batch, bound ones projected                 (1)
    total_norm:        |g|^2 summed over the stages, one number from each, so that all clip by one factor     (2)

    stage 0   F0 F1 F2 ..       B0 F3 B1 ..        messages to the right: activations, C
    stage 1      F0 F1 ..    B0 F2 B1 ..           messages to the left: their gradients, G U
    stage 2         F0 B0 F1 B1 ..

The schedule wants tensors of one shape, and the first step with a shape costs a round trip through all stages; so room
is made in steps of a sixteenth of the usual micro-batch, and schedules are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.utils import get_total_norm

from dist_train.data.batches import Batch, balanced_micro_batches
from dist_train.engine import autocast
from dist_train.pipeline.health import Health
from dist_train.pipeline.traffic import step_traffic
from dist_train.pipeline.wire import room_for
from dist_train.predicted_traffic import PredictedTraffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.pipeline.stage import Stage
    from dist_train.pipeline.subspace import Bond
    from dist_train.pipeline.terms import Terms

SCHEDULES_KEPT = 8


class PipelineEngine:
    """This rank's stage, together with the other ranks of `group`, on which every method blocks.

    `InnerOptimizer` must settle `bond` after each step (`Bond.project_weights`).
    """

    def __init__(
        self,
        stage: Stage,
        bond: Bond | None,
        micro_batches: int,
        group: dist.ProcessGroup | None = None,
        *,
        is_counted: bool = True,
    ) -> None:
        """`is_counted`: whether the ledger hears of what the stages send; gloo does not tell."""
        self.stage = stage
        self._bond = bond
        self._group = group
        self._index, self._num_stages = dist.get_rank(group), dist.get_world_size(group)
        self._micro_batches = max(micro_batches, self._num_stages)  # what 1F1B needs to be filled
        self._schedules = dict[tuple[int, bool], Schedule1F1B | ScheduleGPipe]()
        self._predicted = PredictedTraffic()
        self._is_counted = is_counted

    def follow(self, terms: Terms) -> None:
        """Goes on under other terms, with another basis, from the next start on: restart from theta afterwards."""
        self.stage.boundary, self.stage.wire = terms.boundary().to(self.stage.device), terms.wire()
        if self._bond is not None and terms.basis is not None:
            self._bond.rebase(terms.basis)
        self._schedules.clear()

    def expect(self, lengths: Sequence[int] | None) -> None:
        """Plans nothing."""

    def gradient(self, batch: Batch) -> float:
        """The gradient of this stage's parameters (1); the loss on the last stage, 0 on the others."""
        self.stage.model.zero_grad(set_to_none=True)
        losses = self._run(batch, training=True)
        if self._bond is not None:
            self._bond.project_gradients()
        return sum(loss.item() for loss in losses)

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Over all stages (2)."""
        squares = get_total_norm(gradients).to("cpu", torch.float64).square()
        dist.all_reduce(squares, group=self._group)
        return squares.sqrt()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """The sum of losses (nats) and how many targets they are, both on the last stage; nothing on the others."""
        total, num_targets = 0.0, 0
        self.stage.eval()
        try:
            for batch in batches:
                losses = self._run(batch, training=False)
                total += sum(loss.item() for loss in losses) * max(1, batch.num_targets)
                num_targets += batch.num_targets
        finally:
            self.stage.train()
        return (total, num_targets) if self.stage.is_last else (0.0, 0)

    def figures(self) -> dict[str, float]:
        """How much of the stream was lost at this stage's boundary; what all stages should have sent."""
        health, self.stage.health = self.stage.health, Health()
        return health.figures() | self._predicted.figures()

    def _run(self, batch: Batch, *, training: bool) -> list[Tensor]:
        stage = self.stage
        stage.batches = balanced_micro_batches(batch, self._micro_batches)
        stage.num_targets = batch.num_targets
        stage.capacity = room_for([part.num_tokens for part in stage.batches])
        if self._is_counted:
            message_bytes = stage.wire.num_bytes(stage.capacity)
            self._predicted.add(step_traffic(self._num_stages, self._micro_batches, message_bytes, training=training))
        schedule = self._schedule(stage.capacity, training=training)
        numbers = torch.arange(self._micro_batches)
        losses = list[Tensor]()
        with autocast(self.stage.model):
            if training:
                target = numbers if stage.is_last else None
                schedule.step(micro=numbers, target=target, losses=losses, return_outputs=False)
            elif (outputs := schedule.step(micro=numbers)) is not None:
                losses = list(outputs)
        stage.batches = ()
        return losses

    def _schedule(self, capacity: int, *, training: bool) -> Schedule1F1B | ScheduleGPipe:
        key = (capacity, training)
        if key not in self._schedules:
            while len(self._schedules) >= SCHEDULES_KEPT:
                del self._schedules[next(iter(self._schedules))]
            message = self.stage.wire.blank(capacity)
            number = torch.empty(1, dtype=torch.int64, device="meta")
            share = torch.empty(1, dtype=torch.promote_types(self._dtype, torch.float32), device="meta")
            runner = PipelineStage(
                self.stage,
                self._index,
                self._num_stages,
                self.stage.device,
                input_args=number if self.stage.is_first else message,
                output_args=share if self.stage.is_last else message,
                group=self._group,
            )
            self._schedules[key] = (
                Schedule1F1B(runner, self._micro_batches, loss_fn=_share, scale_grads=False)
                if training
                else ScheduleGPipe(runner, self._micro_batches)
            )
        return self._schedules[key]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.stage.parameters()).dtype


def _share(output: Tensor, _target: Tensor) -> Tensor:
    """The last stage puts out the loss itself."""
    return output.sum()
