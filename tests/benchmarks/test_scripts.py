"""Each script of benchmarks/ still starts, and what its arms ask for is still a config."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from benchmarks import heterogeneous

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [
    *(path.stem for path in sorted(FOLDER.glob("*.py")) if 'if __name__ == "__main__"' in path.read_text("utf-8")),
    "chaos.__main__",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_says_what_it_measures(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{script}")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_every_arm_of_the_heterogeneous_runs_is_a_config() -> None:
    for arm in (*heterogeneous.MAIN, *heterogeneous.GRID, *heterogeneous.ABLATIONS):
        config = heterogeneous.config_of(arm, seed=0, rounds=2)
        assert sum(bool(replica.pipeline) for replica in config.replica) == arm.compressed
