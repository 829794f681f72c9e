"""The processes of a run that is to be hurt: started from a warm fork, killed, stopped, cut off, deprived of disk.

Members run the same commands as `dist-train launch` starts. They are forked from a process that has imported
everything, so that starting one again costs the machine's other members (which stand for other machines) next to
nothing. Where the kernel allows, each is on a machine of its own (launcher.star); elsewhere all are on the loopback,
behind forwarders.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.chaos.forwarders import Forwarders
from benchmarks.chaos.history import History
from comms import failpoints
from comms.network import SIMULATION_VARIABLE
from dist_train.config import Config
from dist_train.run_directory import RunDirectory, write_atomically
from launcher.members import processes_beside, threads_of

if TYPE_CHECKING:
    from dist_train.data.batches import Batch
    from launcher.star import Star

COORDINATOR = "coordinator"
COORDINATOR_PORT = 7000
_PR_SET_PDEATHSIG = 1
_PRELOADED = ("benchmarks.chaos.members", "launcher.cli", "dist_train.replica", "dist_train.coordination")


class Members:
    """The processes of one run, by member. Leaving the `with` block kills what is left."""

    def __init__(
        self,
        config: Config,
        history: History,
        step_s: float,
        cables: Star | Forwarders | None = None,
        *,
        fork: bool = True,
    ) -> None:
        """`cables` join the members, and can be pulled out; None: nothing is between them.

        `fork`: members begin as copies of a process that has imported everything; else each imports for itself.
        """
        self.config, self.history, self.cables = config, history, cables
        self._star = None if isinstance(cables, Forwarders) else cables
        self.directory = RunDirectory(Path(config.run.directory))
        self.processes: dict[str, ForkServerProcess | SpawnProcess] = {}
        self._numbers: dict[str, int] = {}
        self._step_s = step_s
        self._context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
        if fork:
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(_PRELOADED))
        self._readers: list[threading.Thread] = []
        self.address = f"127.0.0.1:{_free_port()}"
        if self._star is not None:
            self.address = f"{self._star.addresses[COORDINATOR]}:{COORDINATOR_PORT}"
        self.directory.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory.config, config.to_toml().encode())

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()
        for reader in self._readers:
            reader.join(timeout=5.0)

    def start_coordinator(self) -> None:
        """Starts the coordinator, at the same address each time."""
        self._start(COORDINATOR, ["coordinate", str(self.directory.path), "--address", self.address])

    def start_replica(self, name: str) -> None:
        """Starts a replica of the config."""
        arguments = ["replica", str(self.directory.path), "--id", name, "--coordinator", self.address]
        self._start(name, arguments)

    def start_newcomer(self, name: str) -> None:
        """Lets somebody join whom the config does not name."""
        arguments = ["join", self.address, "--id", name, "--directory", str(self.directory.path.parent / name)]
        self._start(name, [*arguments, *(["--insecure"] if self._star else [])])

    def signal(self, member: str, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self.pid(member), number)

    def pid(self, member: str) -> int:
        """The process of a member that was started."""
        pid = self.processes[member].pid
        if pid is None:
            raise AssertionError(f"{member} was never started")
        return pid

    def exit_code(self, member: str, patience_s: float) -> int | None:
        """How a member ended; None when it has not."""
        process = self.processes[member]
        process.join(patience_s)
        if process.exitcode is not None:
            self.history.add("exited", member=member, number=self._numbers[member], code=process.exitcode)
        return process.exitcode

    def is_stopped(self, member: str) -> bool:
        """Whether the kernel says that the process stands still."""
        return Path(f"/proc/{self.pid(member)}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"

    def limit_files(self, member: str, num_bytes: int) -> None:
        """Lets every write of the member beyond so many bytes of a file fail."""
        _, hard = resource.prlimit(self.pid(member), resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid(member), resource.RLIMIT_FSIZE, (num_bytes, hard))

    def resident_bytes(self, member: str) -> int:
        """Memory that is the member's alone."""
        text = Path(f"/proc/{self.pid(member)}/smaps_rollup").read_text(encoding="utf-8")
        sizes = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
        return 1024 * (int(sizes["Private_Clean"]) + int(sizes["Private_Dirty"]))

    def failpoints_fired(self, member: str) -> list[str]:
        """What failpoints of the member's have fired, oldest first."""
        with suppress(FileNotFoundError):
            return self._fired(member).read_text(encoding="utf-8").splitlines()
        return []

    def _start(self, member: str, arguments: list[str]) -> None:
        number = self._numbers[member] = self._numbers.get(member, 0) + 1
        pipe = self.directory.path / f"{member}.{number}.fifo"
        os.mkfifo(pipe)
        self._readers.append(threading.Thread(target=self._listen, args=(member, number, pipe), daemon=True))
        self._readers[-1].start()
        inside = None if self._star is None else f"/proc/{os.getpid()}/fd/{self._star.descriptor(member)}"
        environment = {"DIST_TRAIN_FAILPOINTS_LOG": str(self._fired(member))}
        if isinstance(self.cables, Forwarders):
            environment[SIMULATION_VARIABLE] = str(self.cables.file)
        facts = (member, arguments, str(pipe), inside, environment)
        pace = {"step_s": self._step_s, "threads": threads_of(processes_beside(self.config))}
        self.processes[member] = self._context.Process(target=run_member, args=facts, kwargs=pace)
        self.processes[member].start()
        self.history.add("started", member=member, number=number, pid=self.pid(member))

    def _listen(self, member: str, number: int, pipe: Path) -> None:
        """Writes down what a member says, until it ends."""
        with pipe.open(encoding="utf-8", errors="replace") as lines:
            pipe.unlink()
            for line in lines:
                self.history.add("log", member=member, number=number, **_said(line.rstrip()))

    def _fired(self, member: str) -> Path:
        return self.directory.path / f"{member}.fired"


def _said(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        return {"at": datetime.fromisoformat(record["at"]).timestamp(), "message": record["message"]}
    except (ValueError, KeyError, TypeError):
        return {"message": line}


def run_member(
    member: str,
    arguments: list[str],
    pipe: str,
    inside: str | None,
    environment: dict[str, str],
    *,
    step_s: float,
    threads: int,
) -> None:
    """The life of a member's process: one command of dist-train, on its own machine, at the pace of a given device.

    Its share of this machine's cores is what `dist-train launch` would give it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(pipe, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    signal.signal(signal.SIGUSR1, lambda *_: failpoints.arm("encoded-payload=corrupt"))
    from launcher import cli  # noqa: PLC0415 - imported already by the process that this one was forked from

    if inside is not None:
        from launcher.namespaces import move_into  # noqa: PLC0415 - pyroute2, on Linux only

        move_into(inside)
    if member != COORDINATOR:
        import torch  # noqa: PLC0415 - a coordinator has none

        torch.set_num_threads(threads)
        _keep_pace(step_s)
    code = cli.run(arguments)
    sys.stderr.flush()
    os._exit(code)  # nothing of the process that this one was forked from is to be wound up here


def _keep_pace(step_s: float) -> None:
    """Lets the gradient of a batch take at least `step_s`, as on a device that computes while the CPU is free."""
    from dist_train.engine import LocalEngine  # noqa: PLC0415 - a coordinator has none

    gradient = LocalEngine.gradient

    def paced(self: LocalEngine, batch: Batch) -> float:
        until_s = time.monotonic() + step_s
        loss = gradient(self, batch)
        time.sleep(max(0.0, until_s - time.monotonic()))
        return loss

    patch.object(LocalEngine, "gradient", paced).start()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
