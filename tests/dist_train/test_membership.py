"""Whole runs in which something is wrong with one member: the others go on, and it is healed or put out, by name."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from comms.errors import Refused
from dist_train.checkpoint import read_checkpoint
from dist_train.outer import PseudoGradientMethod
from dist_train.run_directory import RunDirectory
from tests.running import metrics, run, tiny, write_corpus

ROUNDS = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def failing_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many more outer steps of a replica end with a wrong bit in theta, from its third on."""
    failing = dict[str, int]()
    taken = dict[str, int]()
    finish_round = PseudoGradientMethod.finish_round

    def finish_round_and_fail(self: PseudoGradientMethod) -> None:
        finish_round(self)
        name = threading.current_thread().name
        taken[name] = taken.get(name, 0) + 1
        if taken[name] >= 3 and failing.get(name, 0):
            failing[name] -= 1
            with torch.no_grad():
                next(iter(self.theta().values())).view(-1)[taken[name]] += 1.0

    monkeypatch.setattr(PseudoGradientMethod, "finish_round", finish_round_and_fail)
    return failing


def config(folder: Path, source: str, **sections: dict[str, Any]) -> Any:
    exchange = {"min_replicas": 2, "most_replayed_rounds": 1, "gather_deadline_s": 300.0} | sections.pop("exchange", {})
    return tiny(folder, source, replicas=3, outer={"rounds": ROUNDS}, exchange=exchange, **sections)


def held(directory: RunDirectory) -> set[str]:
    """The digests that the replicas' last checkpoints say they hold."""
    return {
        read_checkpoint(path)[0].theta_digest
        for path in (directory.checkpoints / f"round-{ROUNDS}").glob("*.safetensors")
    }


@pytest.mark.timeout(300)
def test_a_replica_with_a_wrong_bit_is_named_healed_and_takes_part_again(
    tmp_path: Path, source: str, failing_memory: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    failing_memory["b"] = 1
    directory = run(config(tmp_path, source))
    assert failing_memory["b"] == 0
    assert "b is at fault, for the 1. time: it held " in caplog.text
    assert "forgetting them and all checkpoints of them" in caplog.text
    assert len(held(directory)) == 1
    assert (directory.checkpoints / f"round-{ROUNDS}" / "b.safetensors").exists()
    assert "b" in metrics(directory)[-1]["contributors"]


@pytest.mark.timeout(300)
def test_a_replica_whose_memory_fails_in_every_round_is_expelled_and_the_rest_agree(
    tmp_path: Path, source: str, failing_memory: dict[str, int]
) -> None:
    failing_memory["b"] = 100
    with pytest.raises(Refused, match=r"replica 'b' is expelled after 2 faults \(exchange\.most_faults = 2\)"):
        run(config(tmp_path, source, exchange={"most_faults": 2}))
    directory = RunDirectory(tmp_path)
    assert metrics(directory)[-1]["round"] == ROUNDS
    assert metrics(directory)[-1]["contributors"] == ["a", "c"]
    assert len({read_checkpoint(directory.checkpoints / f"round-{ROUNDS}" / f"{name}.safetensors")[0].theta_digest
                for name in "ac"}) == 1  # fmt: skip
