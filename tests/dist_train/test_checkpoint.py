"""A checkpoint is whole or not there, and what cannot be written costs nothing that was."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_train.checkpoint import CheckpointError, CheckpointInfo, Checkpoints, Snapshot, newest_outer


def snapshot(number: int, values: int = 10) -> Snapshot:
    info = CheckpointInfo(number, "c" * 64, "d" * 64)
    tensors = {"w": torch.arange(values, dtype=torch.float32) + number}
    return Snapshot(
        info, tensors, {"w": tensors["w"] * 2}, {"layer.0": tensors["w"] * 3}, {"w/step": torch.tensor(1.0)}
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    torch.manual_seed(5)
    checkpoints = Checkpoints(tmp_path, "a", keep=2)
    checkpoints.write(snapshot(1))
    expected = torch.rand(3)
    torch.manual_seed(0)
    read = checkpoints.newest("c" * 64)
    assert read is not None
    assert read.info == snapshot(1).info
    for part in ("theta", "shared", "own", "inner"):
        wanted, got = getattr(snapshot(1), part), getattr(read, part)
        assert wanted.keys() == got.keys()
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert torch.equal(torch.rand(3), expected), "the random state came back"


def test_replicas_share_a_folder_and_old_rounds_go_with_the_last_of_them(tmp_path: Path) -> None:
    a, b = (Checkpoints(tmp_path, name, keep=2) for name in "ab")
    for number in (1, 2, 3):
        a.write(snapshot(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-2", "round-3"]
    b.write(snapshot(3))
    a.write(snapshot(4))
    a.write(snapshot(5))
    newest = b.newest("c" * 64)
    assert newest is not None
    assert newest.info.round == 3, "what b still needs stays"
    assert newest_outer(tmp_path)[0].round == 5


def test_outer_parameters_in_parts_are_put_together_once_all_ranks_have_written(tmp_path: Path) -> None:
    ranks = [Checkpoints(tmp_path, f"p.{rank}", keep=2, ranks=2) for rank in (0, 1)]
    for number in (1, 2):
        for rank, checkpoints in enumerate(ranks[: 3 - number]):  # of round 2 one part is there
            part = Snapshot(snapshot(number).info, {f"w{rank}": torch.tensor([number, rank])}, {}, {}, {})
            checkpoints.write(part)
    info, theta = newest_outer(tmp_path)
    assert info.round == 1
    assert {name: tensor.tolist() for name, tensor in theta.items()} == {"w0": [1, 0], "w1": [1, 1]}


@pytest.mark.parametrize("damaged", ["outer", "a"])
@pytest.mark.parametrize("keep_bytes", [0, 7, 100])
def test_a_torn_file_is_passed_over(tmp_path: Path, damaged: str, keep_bytes: int) -> None:
    checkpoints = Checkpoints(tmp_path, "a", keep=2)
    checkpoints.write(snapshot(1))
    checkpoints.write(snapshot(2))
    path = tmp_path / "round-2" / f"{damaged}.safetensors"
    path.write_bytes(path.read_bytes()[:keep_bytes])
    newest = checkpoints.newest("c" * 64)
    assert newest is not None
    assert newest.info.round == 1


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "a", keep=2).write(snapshot(1))
    with pytest.raises(CheckpointError, match="choose another run"):
        Checkpoints(tmp_path, "a", keep=2).newest("e" * 64)


FULL_DISK = """
import resource, sys
from pathlib import Path
from dist_train.checkpoint import CheckpointError, Checkpoints
from tests.dist_train.test_checkpoint import snapshot
checkpoints = Checkpoints(Path(sys.argv[1]), "a", keep=1)
checkpoints.write(snapshot(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # no room for more than this in one file
try:
    checkpoints.write(snapshot(2, values=100_000))
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.startswith("cannot write the checkpoint of round 2")
    assert "earlier checkpoints are untouched" in said
    assert said.count("\n") == 1
    newest = Checkpoints(tmp_path, "a", keep=1).newest("c" * 64)
    assert newest is not None
    assert newest.info.round == 1
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()], "no half-written file stays"
