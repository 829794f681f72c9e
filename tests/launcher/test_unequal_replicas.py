"""A strong machine, two ranks of one machine and a pipeline of two weak ones, in one run."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.launcher.test_launch import launched, read_until

UNEQUAL = """
[[replica]]
id = "c"
pipeline = ["old1", "old2"]
compression = "projected-stream"
rank_k = 4
wire_dtype = "bf16"
"""
COMMAND = (sys.executable, "-m", "launcher")
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def unequal_run(tiny_run: Callable[..., Path]) -> Callable[..., Path]:
    """The tiny run with two layers, where b has two ranks and c is a pipeline; where the file is."""

    def write(rounds: int, steps: int = 2) -> Path:
        file = tiny_run(rounds)
        text = file.read_text().replace("layers = 1", "layers = 2").replace('id = "b"', 'id = "b"\nranks = 2')
        text = text.replace("steps = 2", f"steps = {steps}")
        file.write_text(text + UNEQUAL)
        return file

    return write


def test_unequal_replicas_hold_equal_parameters_in_every_round(unequal_run: Callable[..., Path]) -> None:
    file = unequal_run(2)
    subprocess.run([*COMMAND, "launch", str(file)], check=True, timeout=200)
    report = told("report", str(file.parent / "run"), "--json")
    assert [r["contributors"] for r in report["rounds_detail"]] == [["a", "b", "c"]] * 2
    assert {replica["id"]: replica["rounds_committed"] for replica in report["replicas"]} == {"a": 2, "b": 2, "c": 2}
    sent = {row["kind"]: row["sent_bytes"] for row in report["traffic"]}
    assert sent["activation"] > 0
    assert sent["activation_gradient"] > 0
    assert sent["intra_replica"] > 0
    assert_as_predicted(report)
    kinds = {replica["id"]: (replica["kind"], replica["ranks"], replica["rank_k"]) for replica in report["replicas"]}
    assert kinds == {"a": ("dense", 1, None), "b": ("dense", 2, None), "c": ("pipeline", 2, 4)}
    rows = [json.loads(line) for line in (file.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["agreed"] for row in rows)
    assert "reconstruction_error" in rows[-1]["health"]["c"]


def assert_as_predicted(report: dict[str, Any]) -> None:
    """Whatever was sent is within 5 % of what closed forms say.

    But for the entropy-coded payloads of a model of some thousand parameters: their expected size is for larger ones.
    """
    for part in report["traffic"]:
        if part["sent_bytes"]:
            share = 0.1 if part["kind"] == "pseudo_gradient" else 0.05
            assert part["sent_bytes"] == pytest.approx(part["predicted_bytes"], rel=share), part["kind"]


@pytest.mark.full_matrix
def test_a_stage_dies_and_its_replica_comes_back(unequal_run: Callable[..., Path]) -> None:
    file = unequal_run(100_000, steps=60)  # rounds that are slower to train than to catch up with
    with launched(file) as launcher:
        read_until(launcher, "round 2/")
        os.kill(pid_of_stage(file, "old2"), signal.SIGKILL)
        assert "old2.log" in read_until(launcher, "stage old2 of replica c was killed by SIGKILL")
        read_until(launcher, "without c")
        read_until(launcher, "replica c is started again (1 of 3)")
        while "without c" in read_until(launcher, "round "):
            pass
        launcher.send_signal(signal.SIGINT)
        read_until(launcher, "launch it again to resume")
    rows = [json.loads(line) for line in (file.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["agreed"] for row in rows)
    assert all({"a", "b"} <= set(row["contributors"]) for row in rows)


def pid_of_stage(file: Path, stage: str) -> int:
    """From what runs now."""
    wanted = [os.fsencode(part) for part in (str(file.parent / "run"), "--stage", stage)]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if all(part in arguments for part in wanted):
            return int(folder.name)
    raise AssertionError(f"stage {stage} is not running")


def told(*arguments: str) -> dict[str, Any]:
    """What a command says as JSON."""
    output = subprocess.run([*COMMAND, *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
    facts: dict[str, Any] = json.loads(output)
    return facts
