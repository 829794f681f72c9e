"""A pipeline replica in one process: the whole model, with its boundaries as hooks behind the layers before them.

Mathematically the same as its stages on several machines: every boundary compresses, goes through the wire's format
and rebuilds, forwards and backwards. For virtual replicas, for experiments, and for tests to compare with.

    whole batches       the least work: one pass, one message a boundary
    in micro-batches    `InTurn`: what `PipelineEngine` does, one micro-batch after another. Each stage's gradients are
                        summed in the same order, and the norm from the same parts, so the weights have the same bits
                        (two stages; with more, gloo may sum the norm's parts in another order)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dist_train.data.batches import balanced_micro_batches
from dist_train.engine import LocalEngine, autocast
from dist_train.inner import InnerOptimizer
from dist_train.model import fragments, loss_sum
from dist_train.pipeline.subspace import EMBEDDING, Bond
from dist_train.pipeline.wire import room_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.config import InnerConfig
    from dist_train.data.batches import Batch
    from dist_train.engine import Engine
    from dist_train.pipeline.terms import Terms


class Rehearsal(InnerOptimizer):
    """Trains `model` in place as the pipeline of `terms` would; what it sends is counted in `sent_bytes`."""

    def __init__(
        self, model: nn.Module, config: InnerConfig, total_steps: int, terms: Terms, engine: Engine | None = None
    ) -> None:
        super().__init__(model, config, total_steps, engine, settle=self._stay)
        self.sent_bytes = 0
        """Activations and their gradients, over all boundaries, without the room of shorter micro-batches."""
        self.anchor = model.get_parameter(EMBEDDING).detach().clone()
        self._tokens = torch.empty(0, dtype=torch.int64)
        self.bond = self._bond_of(terms)
        self._hooks = list[Any]()
        self.follow(terms)

    def _bond_of(self, terms: Terms) -> Bond | None:
        if terms.basis is None:
            return None
        binds = terms.compression == "subspace"
        return Bond(self.model, terms.basis, terms.bound_layers, self.anchor, binds_embedding=binds)

    def follow(self, terms: Terms) -> None:
        """Goes on under other terms, with another basis; restart from theta afterwards."""
        for hook in self._hooks:
            hook.remove()
        if self.bond is not None and terms.basis is not None:
            self.bond.rebase(terms.basis)
        boundary, wire = terms.boundary(), terms.wire()

        def cross(_layer: nn.Module, _inputs: object, stream: Tensor) -> Tensor:
            anchors = self.anchor[self._tokens] if boundary.anchored else self._tokens.new_empty(0)
            message = wire.pack(boundary.compress(stream[0], anchors), len(self._tokens))
            if stream.requires_grad:
                self.sent_bytes += 2 * wire.num_bytes(len(self._tokens))
            return boundary.rebuild(wire.unpack(message, len(self._tokens), stream.dtype), anchors)[None]

        last_layers = [span.stop - 1 for span in terms.spans[:-1]]
        self._hooks = [
            self.model.get_submodule(f"model.layers.{layer}").register_forward_hook(cross) for layer in last_layers
        ]
        self._hooks.append(self.model.register_forward_pre_hook(self._remember))

    def _remember(self, _model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._tokens = inputs[0][0]

    def accumulate(self, batch: Batch) -> float:
        """As the dense replica's, with bound gradients projected."""
        loss = super().accumulate(batch)
        if self.bond is not None:
            self.bond.project_gradients()
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """The sum of losses, through all boundaries."""
        return loss_sum(self.model, batch)

    def _stay(self) -> None:
        if self.bond is not None:
            self.bond.project_weights()


class InTurn(LocalEngine):
    """The stages of a pipeline, one micro-batch after another."""

    def __init__(self, model: nn.Module, terms: Terms) -> None:
        super().__init__(model)
        self._micro_batches = max(terms.micro_batches, len(terms.spans))
        self._stages = _parameters_of_stages(model, terms)
        self.room_tokens = 0
        """What every message of the last step had room for."""

    @property
    def micro_batches(self) -> int:
        """Of a step."""
        return self._micro_batches

    def room_of(self, batch: Batch) -> int:
        """Tokens that every message of a step with this batch has room for."""
        return room_for([part.num_tokens for part in balanced_micro_batches(batch, self._micro_batches)])

    def gradient(self, batch: Batch) -> float:
        """As that of the stages together."""
        self._model.zero_grad(set_to_none=True)
        self.room_tokens, total = self.room_of(batch), 0.0
        for part in balanced_micro_batches(batch, self._micro_batches):
            with autocast(self._model):
                loss = loss_sum(self._model, part) / max(1, batch.num_targets)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """From that of each stage."""
        del gradients
        squares = [
            get_total_norm([p.grad for p in stage if p.grad is not None]).to("cpu", torch.float64).square()
            for stage in self._stages
        ]
        return torch.stack(squares).sum().sqrt()


def _parameters_of_stages(model: nn.Module, terms: Terms) -> list[list[nn.Parameter]]:
    """In the model's order."""
    last = len(terms.spans) - 1
    stage_of = {"embed": 0, "head": last}
    stage_of |= {f"layer.{layer}": stage for stage, span in enumerate(terms.spans) for layer in span}
    stages = {id(p): stage_of[name] for name, named in fragments(model).items() for p in named.values()}
    return [[p for p in model.parameters() if stages[id(p)] == stage] for stage in range(len(terms.spans))]
