"""Nothing is lost at a boundary of a bound model: stream, gradients, and the optimizer's steps. In fp64."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from dist_train.model import build_model, loss_sum
from dist_train.pipeline.boundary import SubspaceBoundary
from dist_train.pipeline.subspace import EMBEDDING
from dist_train.pipeline.terms import Terms
from tests.dist_train.pipeline.pipelines import batch, config, distance, exact, gradients, rehearsal, values

SPLITS = [(3, 1), (1, 1, 1, 1)]


def streams(model: nn.Module) -> dict[int, Tensor]:
    """Fills up with what each layer hands on, in each forward pass."""
    seen = dict[int, Tensor]()

    def hook(layer: int) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(layer, output.detach()[0])

    for layer in range(4):
        model.get_submodule(f"model.layers.{layer}").register_forward_hook(hook(layer))
    return seen


def bound_and_whole(split: tuple[int, ...]) -> tuple[Any, nn.Module]:
    """A pipeline, and a model with the same weights and no boundaries."""
    settings = config(split)
    pipeline = rehearsal(settings, exact(settings))
    whole = build_model(settings.model, settings.run.seed).double()
    whole.load_state_dict(pipeline.model.state_dict())
    return pipeline, whole


@pytest.mark.parametrize("split", SPLITS)
def test_the_forward_pass_is_exact(split: tuple[int, ...]) -> None:
    pipeline, whole = bound_and_whole(split)
    through, direct = streams(pipeline.model), streams(whole)
    losses = [loss_sum(model, batch(0)).item() for model in (pipeline.model, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-16)
    assert max(distance(through[layer], direct[layer]) for layer in range(4)) <= 5e-16


@pytest.mark.parametrize("split", SPLITS)
def test_gradients_of_free_weights_are_exact_and_of_bound_ones_inside_the_subspace(split: tuple[int, ...]) -> None:
    pipeline, whole = bound_and_whole(split)
    pipeline.accumulate(batch(0))
    torch.autograd.backward(loss_sum(whole, batch(0)) / batch(0).num_targets)
    found, wanted, projection = gradients(pipeline.model), gradients(whole), projector(pipeline)
    bound = [n for n in found if n.endswith(("o_proj.weight", "down_proj.weight")) and "layers.3" not in n]
    assert len(bound) == 6
    for name, gradient in found.items():
        if name in bound:
            assert distance(gradient, projection @ wanted[name]) <= 3e-15, name
            assert distance(wanted[name], projection @ wanted[name]) > 0.5, "the whole model's gradient is not in S"
        elif name == EMBEDDING:
            assert distance(gradient, wanted[name] @ projection) <= 3e-15
        else:
            assert distance(gradient, wanted[name]) <= 3e-15, name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizer_keeps_bound_weights_in_the_subspace(optimizer: Literal["adamw", "muon"]) -> None:
    settings = config((3, 1))
    inner = settings.inner.model_copy(update={"optimizer": optimizer, "lr": 1e-2})
    settings = settings.model_copy(update={"inner": inner})
    pipeline = rehearsal(settings, exact(settings))
    projection, before = projector(pipeline), values(pipeline.model)
    for step in range(5):
        pipeline.accumulate(batch(step))
        pipeline.step()
    off = torch.eye(32, dtype=torch.float64) - projection
    for name, weight in values(pipeline.model).items():
        assert distance(weight, before[name]) > 1e-3, name
        if name == EMBEDDING:
            assert ((weight - before[name]) @ off).norm() <= 1e-14 * weight.norm()
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            inside = (off @ weight).norm() <= 1e-14 * weight.norm()
            assert inside == ("layers.3" not in name), name


def test_token_ids_above_256_find_their_own_anchors() -> None:
    """The story: an id sent beside the activations in bf16 turned 257 into 256. Ours are looked up in the batch."""
    pipeline, whole = bound_and_whole((3, 1))
    tokens = torch.tensor([255, 256, 257, 258, 299, 1])
    through, direct = streams(pipeline.model), streams(whole)
    other = type(batch(0))(tokens, (6,))
    for model in (pipeline.model, whole):
        loss_sum(model, other)
    assert distance(through[2], direct[2]) <= 5e-16
    assert tokens.to(torch.bfloat16)[2] == 256, "which is what would be fetched"


def test_free_weights_lose_what_lies_outside() -> None:
    settings = config((3, 1), compression="projected-stream")
    terms = exact(settings)
    pipeline = rehearsal(settings, terms)
    whole = build_model(settings.model, settings.run.seed).double()
    seen = streams(whole)
    loss_sum(whole, batch(0))
    through = streams(pipeline.model)
    loss_sum(pipeline.model, batch(0))
    anchors = whole.get_parameter(EMBEDDING).detach()[batch(0).tokens]
    nearest = anchors + (seen[2] - anchors) @ projector(pipeline)
    assert distance(through[2], nearest) <= 5e-16
    assert distance(through[2], seen[2]) > 0.01


def test_a_basis_of_all_directions_loses_nothing() -> None:
    settings = config((3, 1), compression="projected-stream", rank_k=32)
    pipeline = rehearsal(settings, exact(settings))
    whole = build_model(settings.model, settings.run.seed).double()
    assert loss_sum(pipeline.model, batch(0)).item() == pytest.approx(loss_sum(whole, batch(0)).item(), rel=1e-14)


def test_the_gradient_that_is_sent_is_g_u() -> None:
    settings = config((3, 1))
    terms = exact(settings)
    assert terms.basis is not None
    boundary, u = SubspaceBoundary(terms.basis).double(), terms.basis.columns
    stream, anchors = torch.randn(2, 5, 32, dtype=torch.float64).unbind()
    stream.requires_grad_()
    content = boundary.compress(stream, anchors)
    content.retain_grad()
    gradient = torch.randn(5, 32, dtype=torch.float64)
    torch.autograd.backward(boundary.rebuild(content, anchors), gradient)
    assert content.grad is not None
    assert stream.grad is not None
    torch.testing.assert_close(content.grad, gradient @ u, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(stream.grad, gradient @ u @ u.T, rtol=1e-14, atol=1e-14)


def projector(pipeline: Any) -> Tensor:
    """P."""
    terms: Terms = exact(config((3, 1)))
    assert terms.basis is not None
    u = terms.basis.columns
    return u @ u.T
