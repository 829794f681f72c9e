"""One task of a Slurm job: a process of a replica, started again when it dies; in the first task the coordinator, too.

    task 0       starts the coordinator, and writes its address into the run directory, beside the name of this step
    every task   waits for an address with that name, starts its process, and stays until that has ended for good

SIGTERM (pre-emption, scancel, the time limit) ends the processes in order; the next start of the job resumes the run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comms.address import host_and_port, is_loopback
from comms.channel import own_host
from dist_train.config import ConfigError
from dist_train.run_directory import write_atomically
from launcher import members
from launcher.failures import LaunchError
from launcher.lock import hold_lock
from launcher.members import COORDINATOR
from launcher.restarts import Restarts
from launcher.standing import is_complete
from launcher.supervisor import Announced, Exited, Interrupted, Supervisor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory

ADDRESS_FILE = "coordinator.address"
# The first task may wait for its node's disk, the others for the shared one to show what it wrote.
START_DEADLINE_S = 300.0
LOOK_EVERY_S = 0.5
GRACE_S = 10.0


@dataclass(frozen=True)
class Place:
    """Which task of which step this is."""

    index: int
    step: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """What Slurm says. ConfigError when it says nothing."""
        try:
            job, step = environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"]
            return cls(int(environment["SLURM_PROCID"]), f"{job}.{step}.{environment.get('SLURM_RESTART_COUNT', '0')}")
        except (KeyError, ValueError):
            raise ConfigError("this is no task of Slurm: dist-train launch starts it, with srun") from None


class Ended(Exception):
    """A signal wants this task to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def run_task(config: Config, directory: RunDirectory) -> int:
    """Runs this task to its end; the exit code. ConfigError or LaunchError, each one line."""
    if is_complete(config, directory):
        return 0
    place = Place.of(os.environ)
    processes = [(r.id, stage) for r in config.replica for stage in range(len(r.processes))]
    if place.index >= len(processes):
        raise ConfigError(f"task {place.index} has nothing to do: the run has {len(processes)} processes")
    with ExitStack() as stack:
        kept = (stack.enter_context(hold_lock(directory.path)),) if place.index == 0 else ()
        supervisor = Supervisor(grace_s=GRACE_S)
        stack.enter_context(supervisor.interrupts())
        stack.enter_context(supervisor)
        replica, stage = processes[place.index]
        try:
            return _Task(config, directory, place, supervisor, kept).run(replica, stage)
        except Ended as ended:
            return 128 + ended.number


class _Task:
    def __init__(
        self, config: Config, directory: RunDirectory, place: Place, supervisor: Supervisor, kept: tuple[int, ...]
    ) -> None:
        self.config, self.directory, self.place, self.supervisor = config, directory, place, supervisor
        self.kept = kept

    def run(self, replica: str, stage: int) -> int:
        address = self._start_coordinator() if self.place.index == 0 else self._await_address()
        ranks = members.section_of(self.config, replica).ranks
        commands = members.replica_commands(self.config, self.directory, replica, address, self.kept, beside=ranks)
        command = commands[stage]
        restarts = Restarts({replica: (command.member,)}, self.config.launch.restarts)
        self.supervisor.start(command)
        while True:
            exits = self.supervisor.exits
            if exits.get(COORDINATOR, 0) != 0:
                return exits[COORDINATOR]
            if COORDINATOR in exits:
                restarts.give_up()
            else:
                restarts.plan(exits, time.monotonic())
                for _ in restarts.take_due(time.monotonic()):
                    self.supervisor.start(command)
            final = restarts.final(exits)
            if replica in final and COORDINATOR not in self.supervisor.running:
                return 0 if COORDINATOR in exits else final[replica]
            self._next_event()

    def _start_coordinator(self) -> str:
        command = members.coordinator_command(self.config, self.directory, self.kept)
        arguments = (*command.arguments, "--address", own_address(self.config))
        self.supervisor.start(type(command)(**{**vars(command), "arguments": arguments}))
        give_up_s = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < give_up_s:
            match self._next_event():
                case Announced(text=address):
                    told = {"step": self.place.step, "address": address}
                    write_atomically(self.directory.path / ADDRESS_FILE, json.dumps(told).encode())
                    return address
                case Exited(code=code):
                    message = f"the coordinator did not start; see {self.directory.log(COORDINATOR)}"
                    raise ConfigError(message) if code == 2 else LaunchError(message)
        raise LaunchError(f"the coordinator announced no address within {START_DEADLINE_S:g} s")

    def _await_address(self) -> str:
        """The address that the first task of this very step has written."""
        give_up_s = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < give_up_s:
            told = _read(self.directory)
            if told.get("step") == self.place.step:
                return str(told["address"])
            self._next_event()
        raise LaunchError(
            f"no address of the coordinator in {self.directory.path / ADDRESS_FILE} within {START_DEADLINE_S:g} s: "
            "is run.directory on a file system that all nodes share?"
        )

    def _next_event(self) -> object:
        event = self.supervisor.next_event(LOOK_EVERY_S)
        if isinstance(event, Interrupted):
            raise Ended(event.signal_number)
        return event


def own_address(config: Config) -> str:
    """Where the coordinator of a job listens: `exchange.address`, or this node as the other nodes reach it."""
    host, port = host_and_port(config.exchange.address)
    if not is_loopback(host):
        return config.exchange.address
    nodes = _nodes()
    for towards in (*reversed(nodes), os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")):
        try:
            found = own_host(f"{towards}:1")
        except (OSError, ValueError):
            continue  # a name that nobody resolves
        if len(nodes) == 1 or not is_loopback(found):
            return f"{found}:{port}"
    return config.exchange.address


def _nodes() -> list[str]:
    given = os.environ.get("SLURM_JOB_NODELIST", "")
    done = subprocess.run(("scontrol", "show", "hostnames", given), capture_output=True, text=True, check=False)
    return done.stdout.split()


def _read(directory: RunDirectory) -> dict[str, Any]:
    try:
        told = json.loads((directory.path / ADDRESS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
