"""A Llama by formula: every tensor's shape, what a token costs, what stays in memory. Builds nothing, needs no torch.

Symbols: d = hidden_size, q = heads * head_dim, g = kv_heads * head_dim, f = intermediate_size, V tokens, L layers, n
the tokens of a document.

    parameters of a layer   2 d q + 2 d g + 3 d f + 2 d   (+ biases, + norms of queries and keys, by family)     (1)
    operations a token      6 (parameters in matrices) + 6 n q          forward 2, backward 4, causal attention  (2)
    kept for the backward   8 d + 2 g + 4 f + heads + 2  values a token and layer;  3 d + 3 V at the head        (3)

(3) was read off what torch keeps for the backward pass of a transformers Llama (tests hold it), q = d; bf16 halves it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dist_train.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
QKV_BIASES, HEAD_NORMS = "qkv_biases", "head_norms"
FAMILIES: dict[str, frozenset[str]] = {
    "llama": frozenset(),
    "mistral": frozenset(),
    "qwen2": frozenset({QKV_BIASES}),
    "qwen3": frozenset({HEAD_NORMS}),
}


@dataclass(frozen=True)
class Architecture:
    """The numbers that decide a Llama-family model's shapes."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool = False
    extras: frozenset[str] = frozenset()

    def fragment_shapes(self) -> dict[str, Shapes]:
        """Shapes by fragment and name, as `dist_train.model.fragments` has them."""
        embed: Shapes = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        head: Shapes = {"model.norm.weight": (self.hidden_size,)}
        if not self.tied:
            head["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        layers = {f"layer.{i}": self.layer_shapes(i) for i in range(self.layers)}
        return {"embed": embed, **layers, "head": head}

    def layer_shapes(self, number: int) -> Shapes:
        """Of one layer (1)."""
        d, q, g, f = self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate_size
        attention: Shapes = {}
        for name, out in (("q", q), ("k", g), ("v", g)):
            attention[f"self_attn.{name}_proj.weight"] = (out, d)
            if QKV_BIASES in self.extras:
                attention[f"self_attn.{name}_proj.bias"] = (out,)
        attention["self_attn.o_proj.weight"] = (d, q)
        if HEAD_NORMS in self.extras:
            attention |= {"self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,)}
        mlp: Shapes = {"mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f)}
        norms: Shapes = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        return {f"model.layers.{number}.{name}": shape for name, shape in {**attention, **mlp, **norms}.items()}

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        return num_values(self.layer_shapes(0))

    @property
    def embed_parameters(self) -> int:
        """Of the embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """Of the last norm and the head."""
        return self.hidden_size + (0 if self.tied else self.embed_parameters)

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.embed_parameters + self.layers * self.layer_parameters + self.head_parameters

    def layer_flops(self, document_tokens: int) -> int:
        """Operations of a token in one layer, forward and backward (2)."""
        matrices = sum(math.prod(shape) for shape in self.layer_shapes(0).values() if len(shape) > 1)
        return 6 * matrices + 6 * document_tokens * self.heads * self.head_dim

    @property
    def head_flops(self) -> int:
        """Operations of a token in the head (2)."""
        return 6 * self.embed_parameters

    def flops_per_token(self, document_tokens: int) -> int:
        """Operations of a token in the whole model."""
        return self.layers * self.layer_flops(document_tokens) + self.head_flops

    @property
    def layer_activation_values(self) -> int:
        """Kept of a token in one layer (3)."""
        group = self.kv_heads * self.head_dim
        return 8 * self.hidden_size + 2 * group + 4 * self.intermediate_size + self.heads + 2

    @property
    def head_activation_values(self) -> int:
        """Kept of a token at the head, the loss's own gradient included (3)."""
        return 3 * self.hidden_size + 3 * self.vocab_size


def num_values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Values of all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def architecture_of(config: ModelConfig) -> Architecture:
    """What `config` describes; ConfigError when its path holds a model whose shapes are not known here."""
    if config.path is not None:
        return _read(Path(config.path).expanduser())
    return Architecture(
        hidden_size=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads or config.heads,
        head_dim=config.hidden_size // config.heads,
        intermediate_size=config.intermediate_size or default_intermediate_size(config.hidden_size),
        vocab_size=config.vocab_size,
    )


def default_intermediate_size(hidden_size: int) -> int:
    """8/3 of `hidden_size`, rounded up to a multiple of 32."""
    return -(-hidden_size * 8 // 3 // 32) * 32


def _read(directory: Path) -> Architecture:
    try:
        document: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f'model.path = "{directory}": config.json cannot be used: {error}') from None
    family = document.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f'model.path = "{directory}" is of type {family!r}; plan knows the shapes of {", ".join(FAMILIES)}'
        )
    try:
        hidden, heads = int(document["hidden_size"]), int(document["num_attention_heads"])
        return Architecture(
            hidden_size=hidden,
            layers=int(document["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(document.get("num_key_value_heads") or heads),
            head_dim=int(document.get("head_dim") or hidden // heads),
            intermediate_size=int(document["intermediate_size"]),
            vocab_size=int(document["vocab_size"]),
            tied=bool(document.get("tie_word_embeddings", False)),
            extras=FAMILIES[family],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'model.path = "{directory}": config.json lacks or spoils {error}') from None
