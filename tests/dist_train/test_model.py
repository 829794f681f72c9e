"""The model is decided by its config and seed, falls apart in fragments, and loses what Hugging Face says it loses."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from dist_train.config import ConfigError, ModelConfig
from dist_train.data.batches import Batch
from dist_train.model import build_model, drawn_weight, fragments, loss_sum, model_vocab_size

if TYPE_CHECKING:
    from pathlib import Path

TINY = ModelConfig(hidden_size=24, layers=2, heads=4, kv_heads=2, vocab_size=40)
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 40,
    "bos_token_id": None,
    "eos_token_id": None,
}


def batch_of(*lengths: int, vocab_size: int = 40) -> Batch:
    tokens = torch.randint(vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(sum(lengths)))
    return Batch(tokens, lengths)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (state(build_model(TINY, seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_initial_bits_are_the_same_on_every_machine() -> None:
    """Golden: torch's own normal numbers differ between an x86 with AVX2 and anything else."""
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in build_model(TINY, 5).parameters())
    assert hashlib.sha256(weights).hexdigest()[:16] == "98f6a5e363725c1a"


@pytest.mark.parametrize("most_at_once", [1, 1000, 1 << 22])
def test_weights_have_the_spread_of_the_config_however_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch, most_at_once: int
) -> None:
    whole = drawn_weight("w", torch.Size([30, 40]), 7, std=0.02)
    monkeypatch.setattr("dist_train.model.DRAWN_AT_ONCE", most_at_once)
    weight = drawn_weight("w", torch.Size([30, 40]), 7, std=0.02)
    assert torch.equal(weight, whole)
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(weight.mean().item()) < 0.002
    assert not torch.equal(weight, drawn_weight("v", torch.Size([30, 40]), 7, std=0.02))


def test_the_caller_s_random_state_neither_changes_nor_matters() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = state(build_model(TINY, 5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(first[name], tensor) for name, tensor in state(build_model(TINY, 5)).items())


def test_a_model_from_numbers_is_an_untied_fp32_llama_of_these_numbers() -> None:
    model = build_model(ModelConfig(hidden_size=48, layers=3, heads=4, vocab_size=100), 2**63 - 1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # embedding and head, norms, and for each layer q k v o, gate up down (48 * 8 / 3 = 128 wide) and two norms
    assert sum(p.numel() for p in model.parameters()) == 2 * 100 * 48 + 48 + 3 * (4 * 48 * 48 + 3 * 48 * 128 + 2 * 48)
    assert model.training
    assert model_vocab_size(ModelConfig(vocab_size=100)) == 100


@pytest.mark.parametrize("family", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("tied", [False, True])
def test_fragments_hold_each_parameter_of_a_llama_family_once(tmp_path: Path, family: Any, tied: bool) -> None:
    family(**SIZES, tie_word_embeddings=tied).save_pretrained(tmp_path)
    model = build_model(ModelConfig(path=str(tmp_path)), 0)
    found = fragments(model)
    assert list(found) == ["embed", "layer.0", "layer.1", "head"]
    assert sorted(name for names in found.values() for name in names) == sorted(n for n, _ in model.named_parameters())
    parameters = [p for names in found.values() for p in names.values()]
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(model.parameters()))
    assert list(found["head"]) == ["model.norm.weight"] + ["lm_head.weight"] * (not tied)
    torch.autograd.backward(loss_sum(model, batch_of(5, 3)))
    assert all(p.grad is not None for p in parameters)


def test_layers_are_ordered_by_number() -> None:
    model = build_model(ModelConfig(hidden_size=8, layers=11, heads=2, vocab_size=4), 0)
    assert list(fragments(model)) == ["embed", *(f"layer.{n}" for n in range(11)), "head"]


def test_frozen_parameters_are_in_no_fragment() -> None:
    model = build_model(TINY, 0)
    model.get_parameter("model.norm.weight").requires_grad_(False)
    assert list(fragments(model)["head"]) == ["lm_head.weight"]


def test_another_layout_is_refused_by_the_name_of_a_parameter() -> None:
    with pytest.raises(ValueError, match=r"Parameter transformer.wte.weight belongs to no fragment"):
        fragments(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=8)))


def test_a_path_decides_the_architecture(tmp_path: Path) -> None:
    numbers = build_model(TINY, 3)
    config: Any = numbers.config
    config.save_pretrained(tmp_path)
    there = ModelConfig(path=str(tmp_path), vocab_size=7)
    assert model_vocab_size(there) == 40
    assert all(torch.equal(state(numbers)[name], tensor) for name, tensor in state(build_model(there, 3)).items())


@pytest.mark.parametrize(
    ("config_json", "message"),
    [
        (None, "holds no config.json"),
        ("{", "config.json cannot be used: "),
        ('{"model_type": "no-such-model"}', "config.json cannot be used: "),
        ('{"model_type": "vit"}', "makes no causal language model: "),
    ],
)
def test_a_path_without_a_usable_config_is_one_line(tmp_path: Path, config_json: str | None, message: str) -> None:
    if config_json:
        (tmp_path / "config.json").write_text(config_json)
    with pytest.raises(ConfigError, match=message) as error:
        build_model(ModelConfig(path=str(tmp_path)), 0)
    assert "\n" not in str(error.value)


def test_a_model_that_knows_nothing_loses_the_log_of_its_vocabulary() -> None:
    model = build_model(TINY, 0)
    model.get_parameter("lm_head.weight").data.zero_()
    batch = batch_of(7, 4, 1)
    assert loss_sum(model, batch).item() == pytest.approx((6 + 3 + 0) * math.log(40), rel=1e-6)


@pytest.mark.parametrize("n", [2, 13, 64])
def test_the_loss_is_hugging_face_s_own(n: int) -> None:
    model = build_model(TINY, 0).double()
    batch = batch_of(n)
    ours = loss_sum(model, batch)
    config: Any = model.config
    config._attn_implementation = "eager"
    theirs = model(batch.tokens[None], labels=batch.tokens[None]).loss * batch.num_targets
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("lengths", [(13, 13, 5), (1, 1, 8), (31,), (7, 5, 3, 2, 1)])
def test_a_packed_batch_loses_what_its_documents_lose_alone(lengths: tuple[int, ...]) -> None:
    model = build_model(TINY, 0).double()
    batch = batch_of(*lengths)
    documents = [Batch(tokens, (len(tokens),)) for tokens in torch.split(batch.tokens, list(lengths))]
    packed = loss_sum(model, batch)
    alone = torch.stack([loss_sum(model, document) for document in documents]).sum()
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=0)
    for found, wanted in zip(gradients(model, packed), gradients(model, alone), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
