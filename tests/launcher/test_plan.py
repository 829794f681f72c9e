"""`dist-train plan` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import cli

DENSE = str(Path(__file__).parents[2] / "examples" / "dense.toml")


def test_the_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", DENSE, "--json", "--replicas", "8", "--link", "10mbit/50mbit,40ms"]) == 0
    plan = json.loads(capsys.readouterr().out)
    documented = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in documented for key in plan)
    assert plan["replicas"] == 8
    assert plan["groups"][0]["links"][0]["limit_bits_per_second"] == 10e6


def test_the_tables_say_bytes_seconds_memory_and_links(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", DENSE, "--bits-per-value", "14"]) == 0
    text = capsys.readouterr().out
    for heading in ("Bytes", "Seconds of a round", "Memory", "Links, a round", "14 bits a value", "[[device]]"):
        assert heading in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_measurement_fills_in_the_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", DENSE, "--measure", "--json", "model.hidden_size=32", "inner.batch_tokens=512"]
    assert cli.run(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["groups"][0]["phases"]["compute_s"] > 0
    assert 0 < plan["utilisation"] < 1
    idle = "measured on this machine (cpu)"  # which the machine of a test need not be
    assert plan["calibration"] in {idle, f"{idle} while it was busy: idle, it is faster"}


def test_what_does_not_fit_is_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text('[[device]]\nname = "a"\ntflops = 1\nmemory_bytes = 1e6\n')
    assert cli.run(["plan", str(run_file)]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_a_bad_rate_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", DENSE, "--link", "fast"]) == 2
    assert '"fast" is no rate' in capsys.readouterr().err
