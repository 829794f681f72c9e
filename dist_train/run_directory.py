"""Where a run keeps what: the paths of a run directory, each named once."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run.

    Several processes of one machine may share it: everything that a process writes is named after its member id,
    and a file that others read appears whole or not at all.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, TOML."""
        return self.path / "config.toml"

    @property
    def journal(self) -> Path:
        """The coordinator's journal, SQLite."""
        return self.path / "coordinator.sqlite"

    @property
    def metrics(self) -> Path:
        """One JSON object for each committed round, written by the coordinator; the last one of a round counts."""
        return self.path / "metrics.jsonl"

    @property
    def facts(self) -> Path:
        """What a report needs to know of model and corpus, JSON, written by the replicas (all write the same)."""
        return self.path / "run.json"

    @property
    def simulation(self) -> Path:
        """The links of a simulated run, JSON, written by the launcher while it lasts."""
        return self.path / "simulation.json"

    @property
    def page(self) -> Path:
        """The report as a page."""
        return self.path / "report.html"

    @property
    def corpus(self) -> Path:
        """Tokenized documents, memory-mapped by every process of this machine."""
        return self.path / "corpus"

    @property
    def checkpoints(self) -> Path:
        """`round-N/` folders."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """One log file a process."""
        return self.path / "logs"

    @property
    def ledgers(self) -> Path:
        """One JSONL file a member: every transfer that it took part in."""
        return self.path / "ledger"

    def ledger(self, member: str) -> Path:
        """The transfers that `member` counted, one JSON object a line."""
        return self.ledgers / f"{member}.jsonl"

    def log(self, member: str) -> Path:
        """What `member`'s process printed."""
        return self.logs / f"{member}.log"

    def payloads(self, member: str) -> Path:
        """`member`'s round log: each payload that it made or fetched, named by its SHA-256."""
        return self.path / "payloads" / member

    def forget_progress(self) -> None:
        """Deletes what a run has written down of its course, so that another can begin here; not its checkpoints."""
        for path in (self.journal, self.metrics, self.facts, *self.path.glob("steps-*.jsonl")):
            for file in path.parent.glob(f"{path.name}*"):  # SQLite keeps -wal and -shm files beside its own
                file.unlink()
        shutil.rmtree(self.ledgers, ignore_errors=True)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Waits until no other process of this machine is inside for this directory."""
    with (directory / "one-at-a-time.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there becomes `path`, whole or not at all.

    That holds also when the disk fills or the power goes: the content is on the disk before it gets its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Puts `content` at `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
