"""Runs as jobs of a real Slurm, and what the script says."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_train.config import ConfigError, load
from dist_train.run_directory import RunDirectory
from launcher.slurm import SlurmBackend, script
from launcher.standing import committed_rounds
from launcher.view import PlainView
from tests.launcher.slurm_cluster import needs_slurm, slurm_cluster
from tests.launcher.test_ssh import read_until, wait_until_nothing_runs_in

TinyRun = Callable[..., Path]
COMMAND = (sys.executable, "-m", "launcher", "launch")
BOUND_S = 60.0
SECTIONS = """
[launch]
backend = "slurm"
[slurm]
options = ["--partition=all", "--time=00:10:00"]
setup = ["module load cuda"]
python = "/opt/venv/bin/python"
[security]
mode = "insecure"
"""
SCRIPT = """#!/bin/bash
#SBATCH --job-name=tiny
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --output={directory}/logs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --partition=all
#SBATCH --time=00:10:00

module load cuda
exec srun --ntasks 2 --kill-on-bad-exit=0 --no-kill --wait=0 /opt/venv/bin/python -m launcher task {directory}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    # munge wants a folder that nobody else can write, all the way up; /tmp is not.
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment


def slurm_run(tiny_run: TinyRun, rounds: int) -> Path:
    file = tiny_run(rounds)
    file.write_text(file.read_text() + '[launch]\nbackend = "slurm"\n[security]\nmode = "insecure"\n')
    return file


@pytest.mark.cluster
@pytest.mark.timeout(300)
@needs_slurm
def test_a_job_is_requeued_resumes_and_is_cancelled(tiny_run: TinyRun, tmp_path: Path, cluster: dict[str, str]) -> None:
    file = slurm_run(tiny_run, 1_000_000)
    with subprocess.Popen([*COMMAND, file], stdout=subprocess.PIPE, text=True, env=cluster) as launcher:
        try:
            job = read_until(launcher, "is submitted").split("job ")[1].split()[0]
            read_until(launcher, "round 2/")
            scontrol = ["scontrol", "requeue", job]
            subprocess.run(scontrol, env=cluster, check=True, timeout=BOUND_S)
            read_until(launcher, f"job {job}: pending")
            committed = committed_rounds(RunDirectory(tmp_path / "run"))
            # Slurm lets a job wait for two minutes before it starts it again.
            subprocess.run(
                ["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster, check=True, timeout=BOUND_S
            )
            read_until(launcher, f"job {job}: running")
            resumed = read_until(launcher, r"round \d+/")
            launcher.send_signal(signal.SIGINT)
            assert launcher.wait(BOUND_S) == 130
        finally:
            launcher.kill()
    assert int(re.findall(r"round (\d+)/", resumed)[0]) > committed >= 2
    assert "resuming from the checkpoint of round" in (tmp_path / "run" / "logs" / "a.log").read_text()
    wait_until_nothing_runs_in(tmp_path)


@pytest.mark.cluster
@pytest.mark.timeout(300)
@needs_slurm
def test_from_inside_an_allocation(tiny_run: TinyRun, cluster: dict[str, str]) -> None:
    file = slurm_run(tiny_run, 2)
    command = ["salloc", "--nodes=2", "--ntasks=2", *COMMAND, str(file)]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 tasks started by srun" in done.stdout
    assert "tiny is complete: all 2 rounds are committed" in done.stdout


def test_the_script(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    file = tiny_run(1)
    file.write_text(file.read_text() + SECTIONS)
    config, directory = load(file), RunDirectory(file.parent / "run")
    assert script(config, directory) == SCRIPT.format(directory=directory.path)
    rendering = SlurmBackend(config, directory, PlainView()).render()
    assert [command.arguments for command in rendering.commands] == [
        ("sbatch", "--parsable", f"{directory.path}/job.sbatch")
    ]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (inside,) = SlurmBackend(config, directory, PlainView()).render().commands
    assert inside.arguments[:3] == ("srun", "--ntasks", "2")


def test_a_dry_run_is_a_script_that_bash_reads(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny_run(1)
    file.write_text(file.read_text() + SECTIONS)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    printed = subprocess.run(
        [*COMMAND, file, "--dry-run"], capture_output=True, env=environment, timeout=60, check=True
    )
    assert printed.stdout.startswith(b"#!/bin/bash\n# tiny in ")
    subprocess.run(["bash", "-n"], input=printed.stdout, check=True, timeout=BOUND_S)


def test_loopback_never_leaves_a_node(tiny_run: TinyRun) -> None:
    file = tiny_run(1)
    config = load(file, ["launch.backend=slurm"])
    with pytest.raises(ConfigError, match='security.mode = "loopback" never leaves a node'):
        SlurmBackend(config, RunDirectory(file.parent / "run"), PlainView())
