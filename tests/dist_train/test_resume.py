"""Killed and started again: the outcome is that of a run that nobody touched, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dist_train.config import Config
from dist_train.run_directory import RunDirectory
from tests.running import metrics, run, theta, tiny, write_corpus

PATIENCE_S = 60.0
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Processes:
    """A coordinator and its replicas as processes, whose log lines are events."""

    config: Config
    directory: RunDirectory
    members: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self) -> None:
        ready, announce = os.pipe()
        coordinate = ["coordinate", str(self.directory.path), "--ready-fd", str(announce)]
        self.members["coordinator"] = self._spawn(coordinate, announce)
        os.close(announce)
        with os.fdopen(ready) as pipe:
            address = pipe.readline().strip()
        for replica in self.config.replica:
            arguments = ["replica", str(self.directory.path), "--id", replica.id, "--coordinator", address]
            self.members[replica.id] = self._spawn(arguments)

    def _spawn(self, arguments: list[str], *descriptors: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
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

    def finish(self) -> list[int]:
        """Waits until all have ended."""
        codes = []
        for process in self.members.values():
            process.communicate(timeout=PATIENCE_S)
            codes.append(process.returncode)
        self.members.clear()
        return codes


@contextmanager
def processes(config: Config) -> Iterator[Processes]:
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


def coverage(directory: RunDirectory) -> list[tuple[int, str]]:
    """Round and leases of all that was committed."""
    with sqlite3.connect(directory.journal) as database:
        rows = database.execute("SELECT round, json_extract(json, '$.leases') FROM committed ORDER BY round").fetchall()
    database.close()
    return rows


KILLS = {
    "sparseloco": [("a", "round 2: trained"), ("b", "round 3: published"), ("coordinator", "round 4: committed")],
    "diloco": [("a", "round 4: applied")],
    "ddp": [("b", "round 3: published")],
}


@pytest.mark.parametrize("method", KILLS)
def test_killed_everywhere_and_launched_again_equals_an_uninterrupted_run(tmp_path: Path, method: str) -> None:
    source = write_corpus(tmp_path / "corpus")
    outer = {"method": method, "rounds": 6 if method != "ddp" else 2}
    every = 2 if method == "sparseloco" else 1  # so that whole rounds are redone, too

    def config(name: str) -> Config:
        return tiny(tmp_path / name, source, outer=outer, checkpoint={"every_rounds": every})

    untouched = run(config("untouched"))
    with processes(config("killed")) as members:
        for member, event in KILLS[method]:
            members.start()
            members.wait_for(member, event)
            members.kill()
        members.start()
        assert members.finish() == [0, 0, 0]
        killed = members.directory

    assert theta(killed)[0].theta_digest == theta(untouched)[0].theta_digest
    assert [r["theta_digest"] for r in metrics(killed)] == [r["theta_digest"] for r in metrics(untouched)]
    assert coverage(killed) == coverage(untouched)
