"""A stage: a contiguous span of a Hugging Face model's layers, with the boundaries on both sides inside.

    first    tokens -> embedding -> layers -> compress -> message
    middle            message -> rebuild -> layers -> compress -> message
    last              message -> rebuild -> layers -> norm -> head -> loss

The model is transformers' own, built without memory; layers that live elsewhere are replaced by `Elsewhere`, which
hands the stream through, and only what a stage hosts is given memory and drawn. So every parameter keeps the name and
the bits that it has in the whole model, and fragments, payloads and checkpoints fit those of dense replicas.

Every stage reads the same batch: tokens, positions and document lengths never travel. A stage is told the number of a
micro-batch and looks the rest up. All but the first stage hold the embedding as an anchor (see `boundary`): they need
its committed updates, and never train or publish it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dist_train.config import ConfigError
from dist_train.dealing import cut
from dist_train.model import draw_weights, fragments, loss_of_logits, model_without_memory, packing
from dist_train.pipeline.health import Health
from dist_train.pipeline.subspace import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.config import ModelConfig
    from dist_train.data.batches import Batch
    from dist_train.pipeline.basis import StreamCovariance
    from dist_train.pipeline.boundary import Boundary
    from dist_train.pipeline.wire import Wire


def spans(layers: int, stages: int, split: Sequence[int] | None = None) -> tuple[range, ...]:
    """The layers of each stage: `split` of them, or as even as can be. ConfigError for a stage with no layers."""
    split = cut(layers, stages, split)
    if len(split) != stages or sum(split) != layers:
        raise ConfigError(
            f"split = {list(split)} does not cut {layers} layers in {stages} stages; "
            f"give {stages} numbers that add up to {layers}"
        )
    if min(split) < 1:
        raise ConfigError(
            f"stage {list(split).index(min(split))} of {stages} has no layers of the model's {layers}; "
            f"name fewer stages, or cut differently"
        )
    starts = [sum(split[:stage]) for stage in range(stages)]
    return tuple(range(start, start + count) for start, count in zip(starts, split, strict=True))


def require_untied(architecture: Any) -> None:
    """ConfigError when embedding and head, which are on two machines, would have to stay equal."""
    if architecture.tie_word_embeddings:
        raise ConfigError("the model's head is tied to its embedding, and a pipeline has them on two machines; untie")


class Elsewhere(nn.Module):
    """Stands for a layer that another stage hosts."""

    def forward(self, stream: Tensor, **_others: object) -> Tensor:
        """The stream, untouched."""
        return stream


def build_stage_model(config: ModelConfig, seed: int, span: range, *, anchored: bool) -> nn.Module:
    """The part of `build_model(config, seed)` that the stage of `span` hosts, in fp32 on the CPU, in training mode.

    With `anchored`, a later stage has the embedding too. ConfigError for a model that cannot be cut.
    """
    whole: Any = model_without_memory(config)
    layers = whole.config.num_hidden_layers
    first, last = span.start == 0, span.stop == layers
    if not (first and last):
        require_untied(whole.config)
    for layer in set(range(layers)).difference(span):
        whole.model.layers[layer] = Elsewhere()
    if not first and not anchored:
        whole.model.embed_tokens = Elsewhere()
    if not last:
        whole.model.norm, whole.lm_head = nn.Identity(), Elsewhere()
    model: nn.Module = whole.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for module in model.modules():
            whole._init_weights(module)  # what transformers gives norms and rotations, which are not drawn
    draw_weights(model, seed)
    _check_cut(model)
    return model.train()


class Stage(nn.Module):
    """What a pipeline schedule runs. `batches` are the micro-batches of the step, `num_targets` those of all of them.

    `span` of `layers` are its own. Parameters are named as in the whole model inside `model`.
    """

    anchor: Tensor | None
    """(vocabulary, d), the embedding as committed; the first stage's own, apart from the embedding that it trains."""

    def __init__(self, model: nn.Module, span: range, layers: int, boundary: Boundary, wire: Wire) -> None:
        super().__init__()
        self.model: Any = model
        self.span, self.is_first, self.is_last = span, span.start == 0, span.stop == layers
        self.boundary, self.wire = boundary, wire
        self.batches: Sequence[Batch] = ()
        self.num_targets = 1
        self.capacity = 0
        self.health = Health()
        self.covariance: StreamCovariance | None = None
        """Takes in what crosses the boundary, while a basis is fitted to it."""
        own = boundary.anchored and self.is_first and not self.is_last
        self.register_buffer(
            "anchor", model.get_parameter(EMBEDDING).detach().clone() if own else None, persistent=False
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """Fragments whose committed updates this stage applies."""
        return tuple(fragments(self.model))

    @property
    def owned(self) -> tuple[str, ...]:
        """Fragments that this stage trains, encodes and publishes: each belongs to one stage."""
        return tuple(name for name in self.needed if name != "embed" or self.is_first)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def forward(self, *received: Tensor, micro: Tensor) -> Tensor:
        """The message for the next stage; on the last one this micro-batch's share of the mean loss, (1,)."""
        batch = self.batches[int(micro)]
        tokens = batch.tokens.to(self.device)
        stream = self.model.model.embed_tokens(tokens) if self.is_first else self._receive(received[0], tokens)
        told = packing(batch, self.device)
        if self.is_last:
            logits = self.model(inputs_embeds=stream[None], **told).logits[0]
            return (loss_of_logits(logits, batch) / max(1, self.num_targets)).reshape(1)
        left = self.model.model(inputs_embeds=stream[None], **told).last_hidden_state[0]
        return self._send(left, tokens, measure=int(micro) == 0 and self.training)

    def _receive(self, message: Tensor, tokens: Tensor) -> Tensor:
        content = self.wire.unpack(message, len(tokens), next(self.model.parameters()).dtype)
        return self.boundary.rebuild(content, self._anchors(tokens))

    def _send(self, stream: Tensor, tokens: Tensor, *, measure: bool) -> Tensor:
        anchors = self._anchors(tokens)
        message = self.wire.pack(self.boundary.compress(stream, anchors), self.capacity)
        if measure and self.boundary.anchored:
            with torch.no_grad():
                content = self.wire.read(message, len(tokens), stream.dtype)
                rebuilt = self.boundary.rebuild(content, anchors)
                self.health.lost_stream += float((stream - rebuilt).square().sum())
                self.health.added_stream += float((stream - anchors).square().sum())
                if self.covariance is not None:
                    self.covariance.add(stream - anchors)
        return message

    def _anchors(self, tokens: Tensor) -> Tensor:
        """(n, d) constants; of no length where the boundary does without."""
        if not self.boundary.anchored:
            return tokens.new_empty(0)
        weight = self.model.get_parameter(EMBEDDING).detach() if self.anchor is None else self.anchor
        return weight[tokens]


@torch.no_grad()
def _check_cut(whole: Any) -> None:
    """ConfigError when the model does something to the stream outside its layers: each stage would do it again."""
    layers, norm = whole.model.layers, whole.model.norm
    whole.model.layers, whole.model.norm = nn.ModuleList(Elsewhere() for _ in layers), nn.Identity()
    probe = torch.ones(1, 1, whole.config.hidden_size)
    position = torch.zeros(1, 1, dtype=torch.int64)
    told = {"position_ids": position, "use_cache": False, "document_lengths": (1,)}
    handed_on = whole.model(inputs_embeds=probe, **told).last_hidden_state
    whole.model.layers, whole.model.norm = layers, norm
    if not torch.equal(handed_on, probe):
        raise ConfigError(
            "the model changes its stream outside its layers, so no pipeline can cut it; use a dense replica"
        )
