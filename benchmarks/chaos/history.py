"""What happened in a run, one JSON object a line: all that the checker may look at, and enough to be checked again.

header   version, seed, replicas, and the bounds that recovery is held to
phase    which part of the run begins: start, baseline, chaos, quiet, end; how long cores have been busy until then
started  a process: member, its number among that member's, pid
log      what a member said, when, by its own clock (all are on one machine)
exited   the process, and its code
fault    kind, victim, when it was injected, the evidence that it fired (empty: none), when it was lifted
round    from the coordinator's journal: contributors and what each consumed of the corpus; tokens from its metrics
stream   from the journal's last state: how far the corpus was handed out, what came back, what is still held
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from dist_train.run_directory import RunDirectory

Record = dict[str, Any]
VERSION = 1


class History:
    """Records as they come, kept in a file. Many threads may add."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w", encoding="utf-8", buffering=1)
        self._changed = threading.Condition()
        self.records: list[Record] = []

    def add(self, kind: str, **facts: Any) -> Record:
        """Writes one record down, with the time where it brings none."""
        record: Record = {"kind": kind, "at": time.time()} | facts
        with self._changed:
            self.records.append(record)
            if not self._file.closed:
                self._file.write(json.dumps(record) + "\n")
            self._changed.notify_all()
        return record

    def wait(self, matches: Callable[[Record], bool], patience_s: float, after: int = 0) -> Record | None:
        """The first matching record from number `after` on; None when none comes in time."""
        deadline_s = time.monotonic() + patience_s
        with self._changed:
            while True:
                for number in range(after, len(self.records)):
                    if matches(self.records[number]):
                        return self.records[number]
                after = len(self.records)
                if not self._changed.wait(max(0.0, deadline_s - time.monotonic())):
                    return None

    def close(self) -> None:
        """Closes the file."""
        with self._changed:
            self._file.close()


def read(file: Path) -> list[Record]:
    """The records of a kept history. ValueError when it is none, or of another version."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not records or records[0].get("kind") != "header" or records[0].get("version") != VERSION:
        raise ValueError(f"{file} is no history of version {VERSION}")
    return records


def add_outcome(history: History, directory: RunDirectory) -> None:
    """Copies what the coordinator wrote down of the run, which is over."""
    with closing(sqlite3.connect(directory.journal)) as database:
        rounds = [json.loads(row) for (row,) in database.execute("SELECT json FROM committed ORDER BY round")]
        (state,) = database.execute("SELECT json FROM state").fetchone()
    lines = directory.metrics.read_text(encoding="utf-8").splitlines()
    metrics = {row["round"]: row for row in map(json.loads, lines)}
    for row in rounds:
        summary = metrics.get(row["round"], {})
        history.add(
            "round",
            round=row["round"],
            contributors=list(dict.fromkeys(entry["replica"] for entry in row["manifest"])),
            leases={replica: _plain(lease) for replica, lease in row["leases"].items()},
            tokens=summary.get("tokens", {}),
            agreed=summary.get("agreed"),
            at=summary.get("committed_at_s"),
        )
    final = json.loads(state)
    history.add(
        "stream",
        tokens_per_epoch=final["book"]["tokens_per_epoch"],
        position=[final["book"]["epoch"], final["book"]["position"]],
        returned=_plain(final["book"]["returned"]),
        held=[segment for lease in final["leases"].values() for segment in _plain(lease)],
    )


def _plain(lease: Iterable[Record]) -> list[list[int]]:
    return [[segment["epoch"], segment["start"], segment["stop"]] for segment in lease]
