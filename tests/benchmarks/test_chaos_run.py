"""A short run under faults, judged by its history: the real processes, forked, on the loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_chaos_checks import differ, good


@pytest.mark.full_matrix
@pytest.mark.timeout(300)
def test_a_run_survives_every_fault_and_its_history_can_be_judged_again(tmp_path: Path) -> None:
    options = ["--replicas", "3", "--minutes", "0.7", "--every", "7", "--baseline-s", "5", "--round-s", "0.6"]
    hurt = chaos(*options, "--seed", "3", "--loopback", "--folder", str(tmp_path), "--commit-bound-s", "30")
    found = json.loads(hurt.stdout)
    assert found["violations"] == []
    assert hurt.returncode == 0
    assert sum(found["faults"].values()) == 6
    assert found["faults"]["partition"] == 1
    again = json.loads(chaos("--check", str(tmp_path / "history.jsonl")).stdout)
    assert again == {key: value for key, value in found.items() if key != "load"}


def test_a_history_with_a_violation_ends_with_1(tmp_path: Path) -> None:
    records = good()
    differ(records)
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(record) + "\n" for record in records))
    judged = chaos("--check", str(history))
    assert judged.returncode == 1
    assert "after round 4 they hold" in json.loads(judged.stdout)["violations"][0]


def chaos(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.chaos", "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
