"""Whole runs of pipeline replicas: resumed they go on bit for bit, any number of stages learns alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_train.config import Config, ReplicaConfig
from dist_train.export import export
from dist_train.run_directory import RunDirectory
from tests.dist_train.pipeline.members import members, run_stages
from tests.running import metrics, run, theta, tiny, write_corpus

BOUND = {"compression": "subspace", "rank_k": 8}
FREE = {"compression": "none", "wire_dtype": "fp32"}
FITTED = {"compression": "projected-stream", "rank_k": 8, "basis": "fitted"}


def piped(directory: Path, source: str, stages: int, keys: dict[str, Any], rounds: int = 5) -> Config:
    """A run of one replica, of so many stages."""
    section = {"id": "p", "pipeline": [f"s{i}" for i in range(stages)], **keys} if stages > 1 else {"id": "p"}
    sections = {"outer": {"rounds": rounds}, "model": {"layers": 4}, "checkpoint": {"every_rounds": 2}}
    dense = tiny(directory, source, replicas=1, **sections)
    return dense.model_copy(update={"replica": (ReplicaConfig(**section),)})


def digests(directory: RunDirectory) -> list[str]:
    """Of theta after each round."""
    return [row["theta_digest"] for row in metrics(directory)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("keys", [BOUND, FITTED], ids=["bound", "fitted"])
def test_killed_altogether_and_launched_again_equals_an_untouched_run(
    tmp_path: Path, source: str, keys: dict[str, Any]
) -> None:
    untouched = run_stages(piped(tmp_path / "untouched", source, 2, keys))
    with members(piped(tmp_path / "killed", source, 2, keys)) as those:
        those.start("between-commit-and-apply@4=kill")  # its newest checkpoint is of round 2
        those.kill_with_the_last()
        those.start()
        those.finish()
    killed = RunDirectory(tmp_path / "killed")
    assert digests(killed) == digests(untouched)
    assert len(digests(killed)) == 5
    assert theta(killed)[0] == theta(untouched)[0]
    assert all(torch.equal(theta(killed)[1][name], tensor) for name, tensor in theta(untouched)[1].items())


def test_a_fitted_basis_is_agreed_on_three_times_and_loses_less_of_the_stream(tmp_path: Path, source: str) -> None:
    seeded, fitted = (
        metrics(run_stages(piped(tmp_path / basis, source, 2, FITTED | {"basis": basis})))
        for basis in ("seeded", "fitted")
    )
    assert [row["health"]["p"]["basis_version"] for row in fitted] == [1, 2, 3, 3, 3]
    last = [rows[-1]["health"]["p"]["reconstruction_error"] for rows in (fitted, seeded)]
    assert last[0] < 0.75 * last[1]


def test_any_number_of_stages_learns_alike_and_can_be_exported(tmp_path: Path, source: str) -> None:
    runs = {1: run(piped(tmp_path / "1", source, 1, FREE, rounds=2))}
    configs = {stages: piped(tmp_path / f"{stages}", source, stages, FREE, rounds=2) for stages in (2, 4)}
    runs |= {stages: run_stages(config) for stages, config in configs.items()}
    curves = {stages: [row["validation_loss"] for row in metrics(directory)] for stages, directory in runs.items()}
    assert curves[2] == pytest.approx(curves[1], rel=1e-3)
    assert curves[4] == pytest.approx(curves[1], rel=1e-3)
    assert export(configs[4], runs[4], tmp_path / "model") == 2
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = theta(runs[4])[1]
    assert expected.keys() == dict(exported.named_parameters()).keys()
    assert all(torch.equal(exported.get_parameter(name), tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 4
