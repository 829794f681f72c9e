"""A run as processes whose log lines are events: what tests kill, stop and start again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dist_train.config import Config
from dist_train.run_directory import RunDirectory

PATIENCE_S = 90.0
COORDINATOR = "coordinator"


@dataclass
class Processes:
    """A coordinator and its replicas. `environment` adds variables to single members, for their next start only."""

    config: Config
    directory: RunDirectory
    members: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    environment: dict[str, dict[str, str]] = field(default_factory=dict)
    address: str = ""

    def start(self) -> None:
        """Starts everybody."""
        self.start_coordinator()
        for replica in self.config.replica:
            self.start_replica(replica.id)

    def start_coordinator(self) -> None:
        """Starts the coordinator and waits until it listens: where it did before, if it did."""
        if self.address:
            text = self.directory.config.read_text(encoding="utf-8")
            text = re.sub(r'(?m)^address = ".*"', f'address = "{self.address}"', text)
            self.directory.config.write_text(text, encoding="utf-8")
        ready, announce = os.pipe()
        self._spawn(COORDINATOR, ["coordinate", str(self.directory.path), "--ready-fd", str(announce)], announce)
        os.close(announce)
        with os.fdopen(ready) as pipe:
            self.address = pipe.readline().strip()
        assert self.address, "the coordinator does not listen"

    def start_replica(self, name: str) -> None:
        """Starts a replica."""
        self._spawn(name, ["replica", str(self.directory.path), "--id", name, "--coordinator", self.address])

    def _spawn(self, member: str, arguments: list[str], *descriptors: int) -> None:
        added = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | self.environment.pop(member, {})
        self.members[member] = subprocess.Popen(
            [sys.executable, "-m", "launcher", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | added,
            pass_fds=descriptors,
        )

    def wait_for(self, member: str, pattern: str) -> None:
        """Reads `member`'s log until a line matches."""
        lines = self.members[member].stderr
        assert lines is not None
        seen = []
        for line in lines:
            seen.append(line)
            if re.search(pattern, line):
                return
        pytest.fail(f"{member} ended without {pattern!r}:\n{''.join(seen)}")

    def kill(self) -> None:
        """SIGKILL to everything at once."""
        alive = [process for process in self.members.values() if process.poll() is None]
        assert len(alive) == len(self.members), "the fault came too late: somebody had ended already"
        for process in alive:
            process.send_signal(signal.SIGKILL)
        self.finish()

    def finish(self) -> dict[str, int]:
        """Waits until all have ended; their exit codes."""
        codes = {}
        for member, process in self.members.items():
            _, said = process.communicate(timeout=PATIENCE_S)
            codes[member] = process.returncode
            if process.returncode not in (0, -signal.SIGKILL):
                print(said)
        self.members.clear()
        return codes


@contextmanager
def processes(config: Config) -> Iterator[Processes]:
    """The processes of a run, none of them started yet; none is left behind."""
    directory = RunDirectory(Path(config.run.directory))
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.config.write_text(config.to_toml(), encoding="utf-8")
    started = Processes(config, directory)
    try:
        yield started
    finally:
        for process in started.members.values():
            process.kill()
            process.communicate()
