"""A compressed replica and a dense one in one run: each silent bug of this composition, and that it is not here.

Numbered as in the reasoning of `subspace`; "the story" tests show the wrong way going wrong as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from compression.feedback import ErrorFeedback
from compression.registry import codec_for
from dist_train.config import Config, ConfigError
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model, loss_sum
from dist_train.outer import LocalStart, PseudoGradientMethod, outer_method
from dist_train.pipeline.rehearsal import Rehearsal
from dist_train.pipeline.stage import build_stage_model
from dist_train.pipeline.subspace import EMBEDDING, Bond
from dist_train.pipeline.terms import make_stage, terms_of
from tests.dist_train.pipeline.pipelines import as_drawn, batch, config, distance, exact, method, values

O_PROJ = "model.layers.0.self_attn.o_proj.weight"


def dense(settings: Config) -> tuple[InnerOptimizer, PseudoGradientMethod]:
    model = build_model(settings.model, settings.run.seed).double()
    inner = InnerOptimizer(model, settings.inner, 100)
    outer = outer_method(settings, model, inner)
    assert isinstance(outer, PseudoGradientMethod)
    return inner, outer


def mixed(settings: Config) -> tuple[list[InnerOptimizer], list[PseudoGradientMethod]]:
    """A pipeline replica and a dense one, both at the start of a round."""
    pipeline = as_drawn(settings, exact(settings))
    other, outer = dense(settings)
    return [pipeline, other], [method(settings, pipeline), outer]


def exchange(methods: Sequence[PseudoGradientMethod], tokens: Sequence[int] = (1, 1)) -> dict[str, Tensor]:
    """A whole outer round over real payloads; returns what was sent by the first replica, per fragment, unpacked."""
    sent = dict[str, Tensor]()
    for fragment, layout in methods[0].layouts.items():
        payloads = [m.codec.encode(m.contribution(fragment), layout) for m in methods]
        updates = [methods[-1].codec.decode(payload, layout) for payload in payloads]
        for i, outer in enumerate(methods):
            outer.apply(fragment, updates, tokens, updates[i])
        flat = torch.zeros(layout.num_values)
        updates[0].add_to(flat)
        sent |= layout.unpack(flat)
    return sent


def step(inner: InnerOptimizer, seed: int) -> None:
    inner.accumulate(batch(seed))
    inner.step()


def off_subspace(weight: Tensor, settings: Config) -> float:
    basis = exact(settings).basis
    assert basis is not None
    u = basis.columns
    return distance(weight.double(), u @ (u.T @ weight.double()))


# ---- 1: exchange for each fragment ----


def test_each_fragment_is_owned_by_one_stage_and_laid_out_as_in_a_dense_replica() -> None:
    settings = config((1, 2, 1))
    terms = terms_of(settings, settings.replica[0])
    stages = [make_stage(settings, terms, index) for index in range(3)]
    assert [stage.owned for stage in stages] == [("embed", "layer.0"), ("layer.1", "layer.2"), ("layer.3", "head")]
    assert all(stage.needed[0] == "embed" for stage in stages)
    _, whole = dense(settings)
    for stage in stages:
        inner = InnerOptimizer(stage.model, settings.inner, 100)
        outer = outer_method(settings, stage.model, inner)
        for fragment, layout in outer.layouts.items():
            assert layout.shapes == whole.layouts[fragment].shapes
        start = values(build_model(settings.model, settings.run.seed))
        assert all(torch.equal(tensor, start[name]) for name, tensor in outer.theta().items())


# ---- 2: the projected start ----


def erosion(settings: Config, start_type: type[LocalStart]) -> float:
    """What is left after ten rounds of something outside S that only the dense replica had put into W_o."""
    inners, methods = mixed(settings)
    learnt = torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    basis = exact(settings).basis
    assert basis is not None
    outside = torch.eye(32, dtype=torch.float64) - basis.columns @ basis.columns.T
    learnt = outside @ learnt
    for outer in methods:
        outer.theta()[O_PROJ].add_(learnt)
        outer.restart_from_theta()
    if start_type is not LocalStart:
        methods[0]._start = _Unprojected(methods[0]._start)
        methods[0].restart_from_theta()
    before = outside @ methods[1].theta()[O_PROJ]
    for _ in range(10):
        exchange(methods)  # nobody trains: whatever changes is the exchange's own doing
    assert methods[0].digest() == methods[1].digest()
    assert len(inners) == 2
    return float((outside @ methods[1].theta()[O_PROJ]).norm() / before.norm())


class _Unprojected(LocalStart):
    """The bug: the replica works on P W, and measures its change from W."""

    def __init__(self, right: LocalStart) -> None:
        self._right = right

    def begin(self, name: str, theta: Tensor) -> Tensor:
        return self._right.begin(name, theta)

    def start(self, name: str, theta: Tensor) -> Tensor:
        del name
        return theta


def test_what_dense_replicas_learnt_outside_the_subspace_is_kept() -> None:
    """The story: measured from the unprojected start, each sync halves it, and 0.1 % is left after ten rounds."""
    settings = config()
    assert erosion(settings, LocalStart) == pytest.approx(1.0, abs=1e-6)
    assert erosion(settings, _Unprojected) == pytest.approx(2**-10, rel=1e-3)


def test_the_pseudo_gradient_lies_in_the_subspace() -> None:
    settings = config()
    (pipeline, _), (outer, _) = mixed(settings)
    step(pipeline, 0)
    delta = outer.layouts["layer.0"].unpack(outer.contribution("layer.0").clone())
    assert off_subspace(delta[O_PROJ], settings) < 1e-5
    assert delta[O_PROJ].norm() > 0


# ---- 3: the embedding after a sync ----


def test_after_a_sync_with_a_dense_peer_the_pipeline_equals_one_process() -> None:
    settings = config()
    inners, methods = mixed(settings)
    for round_number in range(3):
        for i, inner in enumerate(inners):
            step(inner, 2 * round_number + i)
        exchange(methods)
        pipeline = inners[0]
        whole = build_model(settings.model, 0).double()
        whole.load_state_dict(pipeline.model.state_dict())
        found, wanted = (loss_sum(model, batch(50)).item() for model in (pipeline.model, whole))
        assert found == pytest.approx(wanted, rel=1e-15)
    theta = methods[1].theta()
    assert torch.equal(pipeline.model.get_parameter(EMBEDDING), theta[EMBEDDING]), "absorbed, not projected"


def test_a_stage_that_misses_the_embedding_s_update_computes_something_else() -> None:
    """The story: only the first stage took the update, the others rebuilt with the old anchor."""
    settings = config()
    inners, methods = mixed(settings)
    pipeline = inners[0]
    assert isinstance(pipeline, Rehearsal)
    stale = pipeline.anchor.clone()
    for i, inner in enumerate(inners):
        step(inner, i)
    exchange(methods)
    right = loss_sum(pipeline.model, batch(50)).item()
    pipeline.anchor.copy_(stale)
    assert abs(loss_sum(pipeline.model, batch(50)).item() / right - 1) > 1e-6


# ---- 4: top-k leaves the subspace; the error feedback stays whole ----


def sparse(settings: Config, **changes: Any) -> Config:
    changed = settings.sparseloco.model_copy(update={"k": 8, "value_bits": 2, "error_decay": 1.0, **changes})
    return settings.model_copy(update={"sparseloco": changed})


def test_top_k_leaves_the_subspace_and_the_replica_does_not() -> None:
    settings = sparse(config())
    inners, methods = mixed(settings)
    for round_number in range(3):
        for i, inner in enumerate(inners):
            step(inner, 2 * round_number + i)
        wanted = methods[0].contribution("layer.0").clone()
        methods[0]._feedback = ErrorFeedback(1.0)  # asked once more below, as if for the first time
        sent = exchange(methods)
        assert off_subspace(sent[O_PROJ], settings) > 0.5
        assert off_subspace(values(inners[0].model)[O_PROJ], settings) < 1e-6
        residual = methods[0].layouts["layer.0"].unpack(methods[0].own_state()["layer.0"])[O_PROJ]
        whole = methods[0].layouts["layer.0"].unpack(wanted)[O_PROJ]
        if round_number == 0:
            torch.testing.assert_close(sent[O_PROJ] + residual, whole, rtol=1e-5, atol=1e-7)
    assert methods[0].digest() == methods[1].digest(), "projected where it is used, never in what is shared"


def test_error_feedback_brings_everything_across_unless_it_is_projected_alone() -> None:
    """The story: a residual pulled back into S forgets that places outside were already sent."""
    settings = sparse(config())
    basis = exact(settings).basis
    assert basis is not None
    u = basis.columns.float()
    cosines = []
    for projected in (False, True):
        codec = codec_for("sparseloco", chunk=256, k=8)
        layout, feedback = codec.layout({"w": (32, 96)}), ErrorFeedback(1.0)
        generator = torch.Generator().manual_seed(0)
        truth, arrived = torch.zeros(32, 96), torch.zeros(layout.num_values)
        for _ in range(60):
            delta = u @ torch.randn(8, 96, generator=generator)
            truth += delta
            update = codec.decode(codec.encode(feedback.accumulate("f", layout.pack({"w": delta})), layout), layout)
            update.add_to(arrived)
            feedback.settle("f", update)
            if projected:
                residual = layout.unpack(feedback.state_dict()["f"])["w"]
                feedback.load_state_dict({"f": layout.pack({"w": u @ (u.T @ residual)})})
        cosines.append(float(torch.cosine_similarity(layout.unpack(arrived)["w"].flatten(), truth.flatten(), dim=0)))
    assert cosines[0] > cosines[1] + 0.02


# ---- 5: one wire form ----


def test_a_compressed_replica_s_payload_needs_no_basis_to_be_read() -> None:
    settings = sparse(config())
    (pipeline, other), (bound, free) = mixed(settings)
    step(pipeline, 0)
    step(other, 0)
    for fragment, layout in bound.layouts.items():
        payloads = [m.codec.encode(m.contribution(fragment), layout) for m in (bound, free)]
        updates = [free.codec.decode(payload, free.layouts[fragment]) for payload in payloads]
        assert updates[0].positions is not None
        assert updates[1].positions is not None
        assert len(updates[0].positions) == len(updates[1].positions)
    other_free = dense(settings)[1]
    exchange([bound, free, other_free], (1, 1, 1))
    assert bound.digest() == free.digest() == other_free.digest()


# ---- 6: the architecture ----


def test_a_tied_head_cannot_be_cut(tmp_path: Any) -> None:
    settings = config()
    build: Any = build_model(settings.model, 0)
    build.config.tie_word_embeddings = True
    build.config.save_pretrained(tmp_path)
    model = settings.model.model_copy(update={"path": str(tmp_path)})
    with pytest.raises(ConfigError, match="head is tied to its embedding"):
        build_stage_model(model, 0, range(3), anchored=True)


def test_learning_rates_are_those_of_dense_replicas() -> None:
    """Weights keep their ambient form, so no factor sqrt(d / k) is to be forgotten: a bound step is a free one's,
    less the part outside S. AdamW's first step moves every value by the rate.
    """
    settings = config()
    inners, _ = mixed(settings)
    moved = []
    for inner in inners:
        before = values(inner.model)[O_PROJ]
        step(inner, 0)
        moved.append(float((values(inner.model)[O_PROJ] - before).norm()))
    assert (8 / 32) ** 0.5 < moved[0] / moved[1] < 1.0


# ---- 7: unequal work ----


def test_tokens_weigh_what_unequal_replicas_bring() -> None:
    settings = config()
    changed = settings.sparseloco.model_copy(update={"aggregate": "weighted"})
    settings = settings.model_copy(
        update={"sparseloco": changed, "outer": settings.outer.model_copy(update={"guard": "off"})}
    )
    inners, methods = mixed(settings)
    name = "model.layers.3.mlp.up_proj.weight"
    before = methods[1].theta()[name].clone()
    for i, inner in enumerate(inners):
        step(inner, i)
    moved = [before - values(inner.model)[name].float() for inner in inners]
    exchange(methods, (100, 300))
    found = before - methods[1].theta()[name]
    torch.testing.assert_close(found, 0.25 * moved[0] + 0.75 * moved[1], rtol=1e-4, atol=1e-6)


# ---- health ----


def test_the_health_of_a_sync_by_hand() -> None:
    settings = config()
    inners, methods = mixed(settings)
    pipeline = inners[0]
    assert isinstance(pipeline, Rehearsal)
    assert isinstance(pipeline.bond, Bond)
    pipeline.bond.figures()
    basis = exact(settings).basis
    assert basis is not None
    u = basis.columns
    for i, inner in enumerate(inners):
        step(inner, i)
    old = methods[0].theta()[EMBEDDING].clone()
    exchange(methods)
    theta = methods[0].theta()
    names = [f"model.layers.{i}.{output}.weight" for i in range(3) for output in ("self_attn.o_proj", "mlp.down_proj")]
    off = sum(float((theta[n] - u @ (u.T @ theta[n])).square().sum()) for n in names)
    everything = sum(float(theta[n].square().sum()) for n in names)
    change = theta[EMBEDDING] - old
    figures = methods[0].figures()
    assert figures["off_subspace_share"] == pytest.approx((off / everything) ** 0.5, rel=1e-5)
    drift = float((change - change @ u @ u.T).norm() / theta[EMBEDDING].norm())
    assert figures["anchor_drift"] == pytest.approx(drift, rel=1e-4)
    assert drift > 0
