"""The exported model is the run's: it opens with transformers alone and gives the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_train.checkpoint import CheckpointError
from dist_train.config import ConfigError
from dist_train.data.batches import Batch
from dist_train.export import export
from dist_train.model import build_model, loss_sum
from dist_train.run_directory import RunDirectory
from tests.running import run, theta, tiny, write_corpus


def test_an_exported_model_gives_the_logits_of_the_run(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", write_corpus(tmp_path / "corpus"), outer={"rounds": 2})
    directory = run(config)
    assert export(config, directory, tmp_path / "model") == 2
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert exported.config._attn_implementation == "sdpa", "nothing of ours is needed to run it"

    model = build_model(config.model, config.run.seed)
    parameters: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in theta(directory)[1].items():
            parameters[name].copy_(tensor)
            assert torch.equal(exported.get_parameter(name), tensor), name
        tokens = torch.arange(64) % 256
        expected = loss_sum(model, Batch(tokens, (64,)))
        logits = exported(tokens[None]).logits[0]
        found = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    config = tiny(tmp_path, "python-stdlib")
    with pytest.raises(CheckpointError, match="has not committed a round yet"):
        export(config, RunDirectory(tmp_path), tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        export(config, RunDirectory(tmp_path), tmp_path / "full")
