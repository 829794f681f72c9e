"""Stages in processes of their own, over gloo, equal one process: loss, norm, weights, evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dist_train.config import ConfigError
from dist_train.engine import evaluate
from dist_train.model import build_model
from dist_train.pipeline.stage import build_stage_model, spans
from dist_train.pipeline.terms import make_stage, terms_of
from tests.dist_train.pipeline.pipelines import batch, config, distance, exact, rehearsal, values
from tests.dist_train.pipeline.stage_process import LENGTHS, SCENARIOS, STEPS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes wrote, having trained all scenarios."""
    folder = tmp_path_factory.mktemp("stages")
    command = [sys.executable, "-W", "error", "-m", "tests.dist_train.pipeline.stage_process"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(folder)], env=environment, check=True, timeout=110)
    return folder


def told(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each stage of a scenario wrote."""
    stages = len(SCENARIOS[name][0])
    return [json.loads((folder / f"{name} {rank}.json").read_text(encoding="utf-8")) for rank in range(stages)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_stages_train_as_one_process(trained: Path, name: str) -> None:
    """One loss curve, one gradient norm, the same weights to rounding after several steps."""
    split, compression = SCENARIOS[name]
    settings = config(split, compression=compression)
    one = rehearsal(settings, exact(settings))
    losses, norms = [], []
    for step in range(STEPS):
        losses.append(one.accumulate(batch(step, LENGTHS[step])))
        norms.append(one.step())
    stages = told(trained, name)
    for stage in stages:
        assert stage["norms"] == pytest.approx(norms, rel=1e-12), "every stage clips by the norm of all"
    shares = [sum(of_step) for of_step in zip(*(stage["losses"] for stage in stages), strict=True)]
    assert shares == pytest.approx(losses, rel=1e-12), "the stages' shares add up to the loss"
    assert all(norm > 0.5 for norm in norms), "clipping took part"
    wanted = values(one.model)
    for rank, stage in enumerate(stages):
        for key, found in load_file(trained / f"{name} {rank}.safetensors").items():
            if key != "model.embed_tokens.weight" or rank == 0:  # elsewhere it is the anchor
                assert distance(found, wanted[key]) < 1e-10, key
        assert stage["schedules"] <= 6
    total, targets = evaluate(one.model, [batch(50), batch(51)])
    assert sum(stage["evaluation"][0] for stage in stages) == pytest.approx(total, rel=1e-12)
    assert sum(stage["evaluation"][1] for stage in stages) == targets


def test_two_and_four_stages_give_one_loss_curve(trained: Path) -> None:
    """Both have their last boundary before the last layer, so they are one model."""
    curves = [told(trained, name)[0]["losses"] for name in ("two", "four")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-12)


def test_the_reconstruction_error_tells_bound_from_free(trained: Path) -> None:
    errors = [told(trained, name)[0]["health"]["reconstruction_error"] for name in ("two", "two free")]
    assert errors[0] < 1e-15
    assert 0.1 < errors[1] < 1.0


def test_stages_that_differ_are_told_so(trained: Path) -> None:
    for rank in range(2):
        basis, cut = json.loads((trained / f"disagree {rank}.json").read_text(encoding="utf-8"))
        assert basis.startswith(f"stage {1 - rank} has another basis than stage {rank}")
        assert cut.startswith(f"stage {1 - rank} has other pipeline settings than stage {rank}")


def test_a_stage_draws_only_its_own_and_the_same_bits() -> None:
    settings = config((1, 2, 1))
    terms = terms_of(settings, settings.replica[0])
    whole = build_model(settings.model, settings.run.seed)
    parameters, buffers = dict(whole.named_parameters()), dict(whole.named_buffers())
    seen = set[str]()
    for index in range(3):
        stage = make_stage(settings, terms, index)
        for name, parameter in stage.model.named_parameters():
            assert torch.equal(parameter, parameters[name]), name
        for name, buffer in stage.model.named_buffers():
            assert torch.equal(buffer, buffers[name]), name
        seen.update(name for name, _ in stage.model.named_parameters())
    assert seen == parameters.keys()


def test_without_compression_later_stages_hold_no_embedding() -> None:
    settings = config((1, 2, 1), compression="none")
    terms = terms_of(settings, settings.replica[0])
    assert make_stage(settings, terms, 2).needed == ("layer.3", "head")


def test_spans() -> None:
    assert spans(7, 3) == (range(3), range(3, 5), range(5, 7))
    assert spans(16, 4, (3, 2, 3, 8)) == (range(3), range(3, 5), range(5, 8), range(8, 16))
    with pytest.raises(ConfigError, match=r"stage 2 of 3 has no layers of the model's 2"):
        spans(2, 3)
    with pytest.raises(ConfigError, match=r"split = \[1, 2\] does not cut 4 layers in 2 stages"):
        spans(4, 2, (1, 2))


def qwen(folder: Path, **changes: Any) -> str:
    """A local config of another family, in the same layout."""
    config_of = {"qwen2": "Qwen2Config", "gemma2": "Gemma2Config"}
    import transformers  # noqa: PLC0415 - a family that one test needs

    kind = changes.pop("kind")
    architecture = getattr(transformers, config_of[kind])(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        vocab_size=300,
        tie_word_embeddings=False,
        **changes,
    )
    architecture.save_pretrained(folder)
    return str(folder)


def test_another_family_of_the_same_layout_is_cut_as_well(tmp_path: Path) -> None:
    settings = config((3, 1))
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"path": qwen(tmp_path, kind="qwen2")})}
    )
    terms = terms_of(settings, settings.replica[0])
    whole = values(build_model(settings.model, settings.run.seed))
    for index in range(2):
        stage = make_stage(settings, terms, index)
        assert all(torch.equal(p, whole[name]) for name, p in stage.model.named_parameters())


def test_a_model_that_cannot_be_bound_or_cut_is_refused_in_one_line(tmp_path: Path) -> None:
    settings = config((3, 1))
    model = settings.model.model_copy(update={"path": qwen(tmp_path, kind="gemma2")})
    settings = settings.model_copy(update={"model": model})
    with pytest.raises(ConfigError, match=r"changes its stream outside its layers|behind a branch") as caught:
        make_stage(settings, terms_of(settings, settings.replica[0]), 0)
    assert "\n" not in str(caught.value)


def test_a_model_is_refused_whose_scaled_stream_would_be_scaled_by_every_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import LlamaModel  # noqa: PLC0415 - to make a model that scales

    plain = LlamaModel.forward

    def scaled(self: Any, inputs_embeds: torch.Tensor | None = None, **others: Any) -> Any:
        return plain(self, inputs_embeds=inputs_embeds * 2, **others) if inputs_embeds is not None else None

    monkeypatch.setattr(LlamaModel, "forward", scaled)
    with pytest.raises(ConfigError, match="changes its stream outside its layers"):
        build_stage_model(config().model, 0, range(3), anchored=True)
