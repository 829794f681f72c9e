"""Formulas equal the built model: parameters, fragments, and what torch keeps for the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from dist_train.config import ConfigError, ModelConfig
from dist_train.data.batches import Batch
from dist_train.model import build_model, fragments, loss_sum
from dist_train.planning.architecture import Architecture, architecture_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def built_shapes(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    found = fragments(build_model(config, 0))
    return {fragment: {name: tuple(p.shape) for name, p in ps.items()} for fragment, ps in found.items()}


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 4),
    half=st.integers(1, 4),
    layers=st.integers(1, 3),
    vocab=st.integers(2, 50),
    inner=st.none() | st.integers(1, 40),
    grouped=st.booleans(),
)
def test_shapes_and_parameters_equal_the_built_model_s(
    *, heads: int, half: int, layers: int, vocab: int, inner: int | None, grouped: bool
) -> None:
    config = ModelConfig(
        hidden_size=2 * half * heads, layers=layers, heads=heads, kv_heads=1 if grouped else None,
        intermediate_size=inner, vocab_size=vocab,
    )  # fmt: skip
    architecture, built = architecture_of(config), built_shapes(config)
    assert {f: dict(sorted(s.items())) for f, s in architecture.fragment_shapes().items()} == {
        f: dict(sorted(s.items())) for f, s in built.items()
    }
    assert architecture.parameters == sum(torch.Size(s).numel() for shapes in built.values() for s in shapes.values())


@pytest.mark.parametrize("family", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("tied", [False, True])
def test_families_have_their_own_extras(tmp_path: Path, family: Any, tied: bool) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    family(**sizes, intermediate_size=64, vocab_size=40, tie_word_embeddings=tied, head_dim=6).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    built = built_shapes(config)
    assert {f: set(s.items()) for f, s in architecture_of(config).fragment_shapes().items()} == {
        f: set(s.items()) for f, s in built.items()
    }


def test_an_unknown_family_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="of type 'gpt2'; plan knows the shapes of llama"):
        architecture_of(ModelConfig(path=str(tmp_path)))


def test_the_published_sizes() -> None:
    half = architecture_of(ModelConfig(hidden_size=1536, layers=12, heads=12, intermediate_size=5440, vocab_size=32000))
    assert half.parameters == pytest.approx(512e6, rel=0.01)
    large = ModelConfig(
        hidden_size=8192, layers=80, heads=64, kv_heads=8, intermediate_size=28672, vocab_size=262144
    )  # fmt: skip
    assert architecture_of(large).parameters == pytest.approx(72.7e9, rel=0.01)


def kept_values(architecture: Architecture, tokens: int) -> float:
    """Values that torch keeps for the backward pass, parameters left out, for each token."""
    config = ModelConfig(
        hidden_size=architecture.hidden_size, layers=architecture.layers, heads=architecture.heads,
        kv_heads=architecture.kv_heads, intermediate_size=architecture.intermediate_size,
        vocab_size=architecture.vocab_size,
    )  # fmt: skip
    model = build_model(config, 0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_sum(model, Batch(torch.zeros(tokens, dtype=torch.long), (tokens,)))
    return sum(kept.values()) / 4 / tokens


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_layer_keeps_what_the_formula_says(kv_heads: int) -> None:
    def with_layers(layers: int) -> Architecture:
        return Architecture(64, layers, 4, kv_heads, 16, 160, 128)

    grown = kept_values(with_layers(3), 64) - kept_values(with_layers(2), 64)
    assert grown == pytest.approx(with_layers(2).layer_activation_values, rel=0.02)
