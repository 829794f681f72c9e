"""`dist-train report` in each of its forms, from one run directory that was written by hand."""

import json
from pathlib import Path

import pytest

from dist_train.config import parse
from dist_train.run_directory import RunDirectory
from launcher.cli import run


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "first", "sparseloco")


def write_run(folder: Path, method: str) -> RunDirectory:
    written = RunDirectory(folder)
    written.ledgers.mkdir(parents=True)
    written.config.write_text(parse({"run": {"name": method}, "outer": {"method": method, "rounds": 1}}).to_toml())
    written.metrics.write_text(json.dumps({"round": 1, "contributors": ["a"], "loss": 2.5, "tokens": {"a": 7}}) + "\n")
    row = {"member": "a", "peer": "b", "direction": "sent", "kind": "pseudo_gradient", "bytes": 41_200, "round": 1}
    written.ledger("a").write_text(json.dumps(row) + "\n")
    return written


def test_a_page_is_written_into_the_run_or_where_it_is_wanted(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(directory.path), "--html"]) == 0
    assert capsys.readouterr().out == f"the report of sparseloco is in {directory.page}\n"
    assert directory.page.read_text().startswith("<!doctype html>")
    elsewhere = tmp_path / "deep" / "page.html"
    assert run(["report", str(directory.path), "--html", "--output", str(elsewhere)]) == 0
    assert elsewhere.is_file()


def test_several_runs_are_compared(directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "other", "diloco")
    assert run(["report", str(directory.path), "--compare", str(other.path), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(r["run"], r["sent_bytes"]) for r in runs] == [("sparseloco", 41_200), ("diloco", 41_200)]
    assert run(["report", str(directory.path), "--compare", str(other.path)]) == 0
    shown = capsys.readouterr().out
    assert "Compared" in shown
    assert "1.00x" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_tables_for_others_are_written(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ledger.csv"
    assert run(["report", str(directory.path), "--ledger", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "sparseloco", "JSON is all that is on stdout"
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("form", [[], ["--json"], ["--html"], ["--ledger", "x.csv"]])
def test_an_empty_directory_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    assert run(["report", str(tmp_path), *form]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"dist-train: {tmp_path}: no run is kept here (no config.toml in it)\n"
    assert list(tmp_path.iterdir()) == []
