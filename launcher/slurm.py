"""A run as a job of Slurm: a task for each process of a replica, and the coordinator beside the first.

Outside of an allocation the launcher writes a script, hands it to sbatch and watches the job; inside of one, where
SLURM_JOB_ID is set, it starts the tasks itself, with srun. What a task does is in `task`. The run directory must be on
a file system that all nodes share: it is where the tasks find the config and the coordinator's address.

A job that is pre-empted and queued again resumes the run by itself: the tasks find the checkpoints.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from dist_train.config import ConfigError
from dist_train.report.metrics import MetricsTail
from dist_train.run_directory import write_atomically
from launcher import members
from launcher.backend import Rendering
from launcher.failures import LaunchError
from launcher.lock import is_locked
from launcher.progress import Progress
from launcher.standing import Standing, is_complete, settle
from launcher.supervisor import Command, Exited, Interrupted, Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory
    from launcher.view import View

SCRIPT = "job.sbatch"
IN_ALLOCATION = "SLURM_JOB_ID"
LOOK_EVERY_S = 2.0
ANSWER_DEADLINE_S = 60.0
# A controller that is being restarted says nothing; the jobs go on.
SILENCE_DEADLINE_S = 600.0
CANCEL_DEADLINE_S = 120.0
INTERRUPTED_CODE = 130
NOT_OVER = frozenset(
    {
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "SUSPENDED",
        "REQUEUED",
        "REQUEUE_HOLD",
        "RESIZING",
        "STAGE_OUT",
    }
    | {"SIGNALING", "STOPPED", "SPECIAL_EXIT"}
)
ROUNDS_SHOWN = 64


class SlurmBackend:
    """One job, or the steps of the allocation that this process is in."""

    def __init__(self, config: Config, directory: RunDirectory, view: View) -> None:
        check(config)
        self.config, self.view = config, view
        self.directory = type(directory)(directory.path.absolute())
        self._inside = IN_ALLOCATION in os.environ
        self._stack = ExitStack()
        self._supervisor = Supervisor(grace_s=CANCEL_DEADLINE_S)
        self._tail = MetricsTail(self.directory.metrics)
        self._rounds = tuple(self._tail.new_rows())
        self._job: str | None = None
        self._is_complete = False

    def render(self) -> Rendering:
        """The script and the command that submits it; inside of an allocation, srun's command."""
        if self._inside:
            return Rendering((self._command("srun", srun(self.config, self.directory)),))
        submit = self._command("sbatch", ("sbatch", "--parsable", str(self._script)))
        return Rendering((submit,), ((SCRIPT, script(self.config, self.directory)),))

    def start(self) -> None:
        """Submits the job, or starts the tasks. LaunchError when Slurm refuses."""
        if is_locked(self.directory.path):
            raise LaunchError(f"{self.directory.path}: a job of this run is at work here; wait for it, or scancel it")
        self._is_complete = settle(self.config, self.directory, self.view.say) is Standing.COMPLETE
        if self._is_complete:
            return
        self._stack.enter_context(self._supervisor.interrupts())
        self._stack.enter_context(self._supervisor)
        (command,) = self.render().commands
        if shutil.which(command.arguments[0]) is None:
            raise LaunchError(f"there is no {command.arguments[0]} here: launch where jobs are submitted")
        self.directory.logs.mkdir(parents=True, exist_ok=True)
        if self._inside:
            self._supervisor.start(command)
            self.view.say(f"{self.config.run.name}: {num_tasks(self.config)} tasks started by srun")
        else:
            write_atomically(self._script, script(self.config, self.directory).encode())
            self._job = _ask(command.arguments).split(";")[0]
            self.view.say(f"{self.config.run.name}: job {self._job} is submitted, with {num_tasks(self.config)} tasks")

    def watch(self) -> int:
        """Shows rounds as they are committed, until the job is over; the exit code."""
        if self._is_complete:
            return 0
        how = self._watch_step() if self._job is None else self._watch_job(self._job)
        if how is None:
            self.view.say("ending the tasks; launch it again to resume")
            return INTERRUPTED_CODE
        self._show_new_rounds()
        if not is_complete(self.config, self.directory):
            raise LaunchError(
                f"{self.config.run.name} is not complete, and its tasks {how}: see {self.directory.logs}. "
                "Launch it again to resume"
            )
        self.view.say(f"{self.config.run.name} is complete: all {self.config.rounds} rounds are committed")
        self.view.say(f"next: dist-train report {self.directory.path}")
        return 0

    def stop(self) -> None:
        """Cancels the job, or ends srun and with it the tasks; waits until they are gone."""
        self._stack.close()
        if self._job is not None:
            job, self._job = self._job, None
            if _state(job) in NOT_OVER:
                _ask(("scancel", job))
                give_up_s = time.monotonic() + CANCEL_DEADLINE_S
                while _state(job) in NOT_OVER and time.monotonic() < give_up_s:
                    time.sleep(LOOK_EVERY_S / 4)

    @property
    def _script(self) -> Path:
        return self.directory.path / SCRIPT

    def _command(self, member: str, arguments: tuple[str, ...]) -> Command:
        return Command(member, arguments, self.directory.log(member))

    def _watch_step(self) -> str | None:
        """How srun ended; None when we were interrupted."""
        while True:
            match self._supervisor.next_event(LOOK_EVERY_S):
                case Exited(code=code):
                    return f"ended with exit code {code}"
                case Interrupted():
                    return None
            self._show_new_rounds()

    def _watch_job(self, job: str) -> str | None:
        """The state in which the job ended; None when we were interrupted."""
        shown, heard_s = "", time.monotonic()
        while True:
            state = _state(job)
            if state is None and time.monotonic() - heard_s > SILENCE_DEADLINE_S:
                return f"(job {job}) have not been heard of for {SILENCE_DEADLINE_S:g} s"
            heard_s = heard_s if state is None else time.monotonic()
            if state is not None and state != shown:
                self.view.say(f"job {job}: {state.lower().replace('_', ' ')}")
                shown = state
            if state is not None and state not in NOT_OVER:
                return f"(job {job}) ended as {state}"
            self._show_new_rounds()
            if isinstance(self._supervisor.next_event(LOOK_EVERY_S), Interrupted):
                return None

    def _show_new_rounds(self) -> None:
        names = members.replica_ids(self.config)
        for row in self._tail.new_rows():
            self._rounds = (*self._rounds, row)[-ROUNDS_SHOWN:]
            progress = Progress(self.config.run.name, self.config.rounds, names, self._rounds)
            self.view.committed(progress, row)
            self.view.show(progress)


def check(config: Config) -> None:
    """ConfigError when the members could not speak from node to node."""
    members.replica_ids(config)
    if config.security.mode == "loopback":
        raise ConfigError(
            'launch.backend = "slurm", and security.mode = "loopback" never leaves a node: use "tls" '
            '(dist-train certs makes what it needs), or "insecure" on a network that you trust'
        )


def num_tasks(config: Config) -> int:
    """One for each process that a machine runs: each replica, or each stage of it."""
    return sum(len(replica.processes) for replica in config.replica)


def script(config: Config, directory: RunDirectory) -> str:
    """What sbatch is given. Options of the config take the place of ours."""
    tasks = num_tasks(config)
    ours = {
        "--job-name": config.run.name,
        "--nodes": str(tasks),
        "--ntasks": str(tasks),
        "--output": str(directory.logs.absolute() / "slurm-%j.log"),
        "--open-mode": "append",
        "--requeue": "",
        "--no-kill": "",
    }
    given = {option.partition("=")[0]: option.partition("=")[2] for option in config.slurm.options}
    if "--ntasks-per-node" in given:
        del ours["--nodes"]
    lines = [f"#SBATCH {name}={value}" if value else f"#SBATCH {name}" for name, value in (ours | given).items()]
    run = shlex.join(srun(config, directory))
    return "\n".join(["#!/bin/bash", *lines, "", *config.slurm.setup, f"exec {run}", ""])


def srun(config: Config, directory: RunDirectory) -> tuple[str, ...]:
    """Starts the tasks; one that fails does not end the others."""
    options = ("--ntasks", str(num_tasks(config)), "--kill-on-bad-exit=0", "--no-kill", "--wait=0")
    python = config.slurm.python or sys.executable
    return ("srun", *options, *members.launcher(python=python), "task", str(directory.path.absolute()))


def _state(job: str) -> str | None:
    """The job's state, such as RUNNING; None when nobody says."""
    try:
        said = _ask(("scontrol", "-o", "show", "job", job))
    except LaunchError:
        return None
    return next((word.partition("=")[2] for word in said.split() if word.startswith("JobState=")), None)


def _ask(command: tuple[str, ...]) -> str:
    """What a command of Slurm prints. LaunchError, in its words, when it refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} has not answered within {ANSWER_DEADLINE_S:g} s") from None
    if done.returncode:
        raise LaunchError(f"{command[0]} refuses: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout.strip()
