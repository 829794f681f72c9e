"""What comes home from a host: what its processes may write, and nothing else."""

from pathlib import Path

import pytest

from dist_train.config import Config, parse
from dist_train.run_directory import RunDirectory
from launcher.bring_home import bring_home


@pytest.fixture
def config() -> Config:
    replicas = [{"id": "a"}, {"id": "b", "host": "far"}, {"id": "c", "pipeline": ["p", "q"], "hosts": ["other", "far"]}]
    return parse({"replica": replicas})


def test_only_what_its_own_processes_write_is_taken(config: Config, tmp_path: Path) -> None:
    there, here = tmp_path / "there", RunDirectory(tmp_path / "here")
    files = ["b", "c.0", "c.1", "a", "coordinator"]
    for name in files:
        (there / "ledger").mkdir(parents=True, exist_ok=True)
        (there / "ledger" / f"{name}.jsonl").write_text(f"of {name}\n")
    (there / "secret").write_text("not yours")
    (there / "run.json").symlink_to("/etc/passwd")
    for number in (9, 10):
        (there / "checkpoints" / f"round-{number}").mkdir(parents=True)
        (there / "checkpoints" / f"round-{number}" / "outer.safetensors").write_text(f"theta {number}")
    assert bring_home(config, here, "far", ("sh", "-c", f"cd {there}")) == ""
    found = {str(path.relative_to(here.path)): path.read_text() for path in here.path.rglob("*") if path.is_file()}
    assert found == {
        "ledger/b.jsonl": "of b\n",
        "ledger/c.0.jsonl": "of c.0\n",
        "ledger/c.1.jsonl": "of c.1\n",
        "checkpoints/round-10/outer.safetensors": "theta 10",
    }
    # What is here already stays, of the outer parameters.
    (there / "checkpoints" / "round-10" / "outer.safetensors").write_text("another")
    assert bring_home(config, here, "far", ("sh", "-c", f"cd {there}")) == ""
    assert newest(here) == "theta 10"


def newest(directory: RunDirectory) -> str:
    return (directory.checkpoints / "round-10" / "outer.safetensors").read_text()


def test_a_host_that_has_nothing_or_is_away_is_said(config: Config, tmp_path: Path) -> None:
    here = RunDirectory(tmp_path)
    assert bring_home(config, here, "far", ("sh", "-c", "cd /no/such/folder 2>/dev/null")) == "has nothing of this run"
    assert "can't be reached" in bring_home(config, here, "far", ("sh", "-c", "exit 255"))
