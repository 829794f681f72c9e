"""What the coordinator must never forget: the state of the run, and the rounds that were committed, in SQLite.

Each transition of the round machine is one transaction, on the disk before anything is sent because of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from comms.agreement import CommittedRound
from comms.errors import JournalError
from comms.run_state import RoundRules, RunState

_STATE = TypeAdapter(RunState)
_COMMITTED = TypeAdapter(CommittedRound)
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 0), json BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS committed (round INTEGER PRIMARY KEY, json BLOB NOT NULL);
"""


class Journal:
    """The journal of one run, in one file. JournalError when it can't be read or written, or is another run's."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA cache_size = -256")  # KiB: what was written is hardly ever read again
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise JournalError(f"{path}: {error}") from error

    def load(self, rules: RoundRules) -> RunState | None:
        """The state that was written last, under `rules`; None before the first."""
        try:
            row = self._database.execute("SELECT json FROM state").fetchone()
            state = None if row is None else _STATE.validate_json(row[0])
        except (sqlite3.Error, ValidationError) as error:
            raise JournalError(f"{self._path} cannot be read: {str(error).splitlines()[0]}") from error
        if state is None:
            return None
        if state.rules.config_digest != rules.config_digest:
            raise JournalError(
                f"{self._path} belongs to a run with config {state.rules.config_digest[:12]}, not "
                f"{rules.config_digest[:12]}: choose another run.directory"
            )
        return replace(state, rules=rules)

    def write(self, state: RunState, committed: CommittedRound | None = None) -> None:
        """Makes `state`, and the round that it has just committed, durable together."""
        try:
            with self._database:
                self._database.execute("BEGIN")
                self._database.execute("INSERT OR REPLACE INTO state VALUES (0, ?)", (_STATE.dump_json(state),))
                if committed is not None:
                    row = (committed.round, _COMMITTED.dump_json(committed))
                    self._database.execute("INSERT INTO committed VALUES (?, ?)", row)
        except sqlite3.Error as error:
            raise JournalError(f"{self._path}: {error}") from error

    def history(self, after_round: int) -> Iterator[CommittedRound]:
        """The rounds committed after `after_round`, oldest first."""
        rows = self._database.execute("SELECT json FROM committed WHERE round > ? ORDER BY round", (after_round,))
        for (row,) in rows:
            yield _COMMITTED.validate_json(row)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
