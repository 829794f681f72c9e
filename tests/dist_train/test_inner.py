"""The inner optimizer takes the steps of its equations, in any number of micro-batches, and resumes bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dist_train.config import InnerConfig, ModelConfig
from dist_train.data.batches import Batch
from dist_train.engine import evaluate
from dist_train.inner import InnerOptimizer, learning_rate
from dist_train.model import build_model, loss_sum

if TYPE_CHECKING:
    from pathlib import Path

OPTIMIZERS: list[Literal["adamw", "muon"]] = ["adamw", "muon"]
TINY = ModelConfig(hidden_size=16, layers=2, heads=4, kv_heads=2, vocab_size=32)


def batches(count: int, lengths: tuple[int, ...] = (9, 9, 4, 2, 1)) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [Batch(torch.randint(TINY.vocab_size, (sum(lengths),), generator=generator), lengths) for _ in range(count)]


def train(inner: InnerOptimizer, data: list[Batch]) -> list[float]:
    losses = []
    for batch in data:
        losses.append(inner.accumulate(batch))
        inner.step()
    return losses


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_the_rate_by_hand() -> None:
    rates = [learning_rate(t, peak=1.0, total_steps=8, warmup_steps=4, final_fraction=0.2) for t in range(10)]
    half = math.sqrt(0.5)
    cosine = [1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half), 0.2, 0.2]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosine], abs=1e-15)


@given(st.integers(0, 300), st.integers(1, 200), st.integers(0, 250), st.floats(0, 1))
def test_the_rate_rises_then_falls_within_its_bounds(step: int, total: int, warmup: int, final: float) -> None:
    def rate(t: int) -> float:
        return learning_rate(t, peak=2.0, total_steps=total, warmup_steps=warmup, final_fraction=final)

    assert (0.0 if step < warmup else 2.0 * final) <= rate(step) + 1e-12 <= 2.0 + 2e-12
    if step + 1 < warmup:
        assert rate(step) < rate(step + 1)
    if step >= warmup:
        assert rate(step + 1) <= rate(step)


def test_accumulate_gives_the_mean_loss_and_its_gradient() -> None:
    model, (batch,) = build_model(TINY, 0).double(), batches(1)
    loss = loss_sum(model, batch) / 20
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    inner = InnerOptimizer(model, InnerConfig(), 10)
    inner.accumulate(batches(2)[1])  # what was there before does not matter
    assert inner.accumulate(batch) == pytest.approx(loss.item(), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("most_tokens", [9, 11, 18, 24])
def test_micro_batches_give_the_gradients_of_the_whole(most_tokens: int) -> None:
    models = [build_model(TINY, 0).double() for _ in range(2)]
    (batch,) = batches(1)
    whole = InnerOptimizer(models[0], InnerConfig(), 10).accumulate(batch)
    cut = InnerOptimizer(models[1], InnerConfig(micro_batch_tokens=most_tokens), 10).accumulate(batch)
    assert cut == pytest.approx(whole, rel=1e-12)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


def test_a_batch_without_targets_changes_nothing_but_the_decay() -> None:
    model = build_model(TINY, 0)
    before, inner = copy_of(model), InnerOptimizer(model, InnerConfig(weight_decay=0), 10)
    assert inner.accumulate(Batch(torch.tensor([1, 2]), (1, 1))) == 0.0
    assert inner.step() == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_first_adamw_step_by_hand() -> None:
    """The first step of Adam moves each value by the rate, against its gradient's sign; matrices decay before."""
    model, (batch,) = build_model(TINY, 0).double(), batches(1)
    before = copy_of(model)
    inner = InnerOptimizer(model, InnerConfig(lr=0.01, eps=1e-30, clip_norm=0, weight_decay=0.5), 10)
    inner.accumulate(batch)
    signs = {name: p.grad.sign() for name, p in model.named_parameters() if p.grad is not None}
    inner.step()
    for name, parameter in model.named_parameters():
        decayed = before[name] * (1 - 0.01 * 0.5) if parameter.dim() > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), decayed - 0.01 * signs[name], rtol=0, atol=1e-12)


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    """Muon's momentum after one step is 0.05 g: it shows the gradient that the step saw."""
    (batch,) = batches(1)
    norms, seen = [], []
    for clip_norm in (0.0, 0.01):
        model = build_model(TINY, 0)
        inner = InnerOptimizer(model, InnerConfig(optimizer="muon", clip_norm=clip_norm), 10)
        inner.accumulate(batch)
        norms.append(inner.step())
        seen.append(inner.state_tensors()["model.layers.0.mlp.up_proj.weight/momentum_buffer"])
    assert norms[0] == norms[1] > 0.01
    torch.testing.assert_close(seen[1], seen[0] * 0.01 / norms[0], rtol=1e-4, atol=0)


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm() -> None:
    model, (batch,) = build_model(TINY, 0), batches(1)
    inner = InnerOptimizer(model, InnerConfig(), 10)
    inner.accumulate(batch)
    model.get_parameter("model.norm.weight").grad.fill_(math.inf)  # type: ignore[union-attr]
    before = copy_of(model)
    with pytest.raises(ArithmeticError, match="gradient of inner step 0 has norm inf; lower"):
        inner.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_on_one_batch_learns_it(optimizer: Literal["adamw", "muon"]) -> None:
    inner = InnerOptimizer(build_model(TINY, 0), InnerConfig(optimizer=optimizer, lr=1e-2), 40)
    losses = train(inner, batches(1) * 40)
    assert losses[0] == pytest.approx(math.log(32), rel=0.05)
    assert losses[-1] < losses[0] / 4
    assert inner.global_step == 40


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop_after", [0, 1, 5])
def test_a_resumed_run_is_bit_equal(tmp_path: Path, optimizer: Literal["adamw", "muon"], stop_after: int) -> None:
    config, data = InnerConfig(optimizer=optimizer, warmup_steps=3, micro_batch_tokens=10), batches(9)
    straight = build_model(TINY, 0)
    expected = train(InnerOptimizer(straight, config, 9), data)

    stopped = build_model(TINY, 0)
    inner = InnerOptimizer(stopped, config, 9)
    found = train(inner, data[:stop_after])
    save_file(inner.state_tensors(), tmp_path / "inner.safetensors")
    save_file(copy_of(stopped), tmp_path / "model.safetensors")

    resumed = build_model(TINY, 1)
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    inner = InnerOptimizer(resumed, config, 9)
    train(inner, batches(2))  # whatever it did before is forgotten
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    inner.load_state_tensors(load_file(tmp_path / "inner.safetensors"))
    found += train(inner, data[stop_after:])

    assert found == expected
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in straight.state_dict().items())


def test_a_loaded_state_is_a_copy() -> None:
    inner = InnerOptimizer(build_model(TINY, 0), InnerConfig(), 10)
    train(inner, batches(1))
    given_away = {name: tensor.clone() for name, tensor in inner.state_tensors().items()}
    other = InnerOptimizer(build_model(TINY, 0), InnerConfig(), 10)
    other.load_state_tensors(inner.state_tensors())
    train(other, batches(1))
    assert all(torch.equal(tensor, given_away[name]) for name, tensor in inner.state_tensors().items())


def test_every_tensor_of_the_state_is_named_by_its_parameter() -> None:
    model = build_model(TINY, 0)
    inner = InnerOptimizer(model, InnerConfig(optimizer="muon"), 10)
    train(inner, batches(1))
    names = inner.state_tensors().keys()
    in_layers = {n for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2}
    others = {n for n, _ in model.named_parameters()} - in_layers
    assert names == (
        {"global_step"}
        | {f"{n}/momentum_buffer" for n in in_layers}
        | {f"{n}/{key}" for n in others for key in ("step", "exp_avg", "exp_avg_sq")}
    )


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (TINY, "muon", "of another inner.optimizer"),
        (TINY.model_copy(update={"hidden_size": 24}), "adamw", "of another model"),
        (TINY.model_copy(update={"layers": 1}), "adamw", "no parameter model.layers.1"),
    ],
)
def test_a_state_of_something_else_is_refused(
    model: ModelConfig, optimizer: Literal["adamw", "muon"], message: str
) -> None:
    inner = InnerOptimizer(build_model(TINY, 0), InnerConfig(), 10)
    train(inner, batches(1))
    other = InnerOptimizer(build_model(model, 0), InnerConfig(optimizer=optimizer), 10)
    with pytest.raises(ValueError, match=message):
        other.load_state_tensors(inner.state_tensors())


def test_evaluation_sums_over_targets_and_leaves_no_trace() -> None:
    model, data = build_model(TINY, 0), batches(3)
    before = copy_of(model)
    total, num_targets = evaluate(model, data)
    assert num_targets == 3 * 20
    assert total == pytest.approx(sum(loss_sum(model, batch).item() for batch in data), rel=1e-6)
    assert evaluate(model, []) == (0.0, 0)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
