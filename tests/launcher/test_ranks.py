"""A replica of two ranks under torchrun, whole on each or in shards: resumed, a rank killed, each planner."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launcher.test_launch import launched, read_until, wait_until_all_are_gone

COMMAND = (sys.executable, "-m", "launcher")
pytestmark = [pytest.mark.timeout(300), pytest.mark.full_matrix]


@pytest.fixture
def two_ranks(tiny_run: Callable[..., Path]) -> Callable[..., Path]:
    """The tiny run in which b has two ranks that share documents; where the file is."""

    def write(name: str, *, rounds: int, shard: bool, planner: str = "adaptive") -> Path:
        text = tiny_run(rounds).read_text().replace('id = "b"', f'id = "b"\nranks = 2\nshard = {str(shard).lower()}')
        text += f'[sequence]\nplanner = "{planner}"\nmax_tokens_per_rank = 48\nplan_deadline_s = 60.0\n'
        file = tiny_run(rounds).parent / f"{name}.toml"
        file.write_text(text.replace('/run"', f'/{name}"'))
        return file

    return write


@pytest.mark.parametrize("shard", [False, True])
def test_stopped_and_resumed_is_never_stopped(two_ranks: Callable[..., Path], shard: bool) -> None:
    untouched = two_ranks("untouched", rounds=6, shard=shard)
    subprocess.run([*COMMAND, "launch", str(untouched)], check=True, timeout=200)
    stopped = two_ranks("run", rounds=6, shard=shard)
    # The same measurements, so that the same plans.
    (stopped.parent / "run").mkdir()
    kept = "sequence-b.json"
    (stopped.parent / "run" / kept).write_bytes((untouched.parent / "untouched" / kept).read_bytes())
    with launched(stopped) as launcher:
        read_until(launcher, "round 2/")
        launcher.kill()
    wait_until_all_are_gone(stopped)
    subprocess.run([*COMMAND, "launch", str(stopped)], check=True, timeout=200)
    assert digests(stopped.parent / "run") == digests(untouched.parent / "untouched")


def test_a_rank_dies_and_its_replica_comes_back(two_ranks: Callable[..., Path]) -> None:
    file = two_ranks("run", rounds=100_000, shard=False)
    file.write_text(file.read_text().replace("steps = 2", "steps = 60"))
    with launched(file) as launcher:
        read_until(launcher, "round 2/")
        os.kill(pid_of_a_rank(file), signal.SIGKILL)
        read_until(launcher, "without b")
        while "without b" in read_until(launcher, "round "):
            pass
        launcher.send_signal(signal.SIGINT)
        read_until(launcher, "launch it again to resume")
    rows = [json.loads(line) for line in (file.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["agreed"] for row in rows)


@pytest.mark.timeout(900)
def test_the_loss_curve_is_that_of_no_planner_whoever_plans(two_ranks: Callable[..., Path]) -> None:
    """In fp32, where a plan adds the same numbers in another order; to the last bits of fp64: the engine's own test."""
    expected = curve_of(two_ranks("off", rounds=4, shard=False, planner="off"))
    for planner in ("static:1", "static:2", "best-homogeneous", "adaptive"):
        found = curve_of(two_ranks(planner.replace(":", "-"), rounds=4, shard=planner == "adaptive", planner=planner))
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-5), planner


def curve_of(file: Path) -> list[tuple[float, float]]:
    """Training and validation loss of every round of a launch of `file`, whose plans came in time."""
    subprocess.run([*COMMAND, "launch", str(file)], check=True, timeout=200)
    rows = [json.loads(line) for line in (file.parent / file.stem / "metrics.jsonl").read_text().splitlines()]
    assert not any(row["health"]["b"].get("sequence_late") for row in rows)
    return [(row["loss"], row["validation_loss"]) for row in rows]


def digests(directory: Path) -> list[str]:
    """Of every round."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [digest for _, digest in sorted({row["round"]: row["theta_digest"] for row in rows}.items())]


def pid_of_a_rank(file: Path) -> int:
    """From what runs now: a process of b that is not torchrun itself."""
    wanted = [os.fsencode(part) for part in (str(file.parent / "run"), "--id", "b")]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if all(part in arguments for part in wanted) and b"torch.distributed.run" not in arguments:
            return int(folder.name)
    raise AssertionError("no rank of b is running")
