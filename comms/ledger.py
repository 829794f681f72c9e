"""Who sent whom how many bytes, of what kind, and how long it took: the rows that every report is made of.

A member counts what it hands to the socket layer and what it gets from it, once each: messages as serialized, plus
gRPC's five bytes before each of them. Payload transfers are rows of their own; the many small transfers (control
messages, sums over the ranks of a replica) are added up for each peer, direction and kind, and written once a round.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Kind = Literal[
    "pseudo_gradient",
    "activation",
    "activation_gradient",
    "sequence_all_to_all",
    "intra_replica",
    "state_transfer",
    "control",
]
Direction = Literal["sent", "received"]

MESSAGE_HEADER_BYTES = 5
"""What gRPC puts before each message: a flag, and its length."""


@dataclass(frozen=True)
class Transfer:
    """A row of the ledger."""

    at_s: float
    """When it ended, seconds since 1970."""
    round: int
    member: str
    """Who counted."""
    peer: str
    """The other end."""
    direction: Direction
    kind: Kind
    bytes: int
    seconds: float
    fragment: str = ""


@dataclass(frozen=True)
class Total:
    """All that was counted of one kind and direction since the ledger was opened."""

    bytes: int = 0
    seconds: float = 0.0
    transfers: int = 0


class Ledger:
    """One member's rows, appended to a file; safe to use from several threads."""

    def __init__(self, path: Path, member: str, clock: Callable[[], float] = time.time) -> None:
        self._member = member
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: dict[tuple[str, Direction, Kind], tuple[int, float]] = {}
        self._totals: dict[tuple[Kind, Direction], Total] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # a row is whole, also when we are killed

    def transfer(
        self,
        *,
        round_number: int,
        peer: str,
        direction: Direction,
        kind: Kind,
        num_bytes: int,
        seconds: float,
        fragment: str = "",
    ) -> None:
        """Writes one row."""
        seconds = round(seconds, 6)
        row = Transfer(self._clock(), round_number, self._member, peer, direction, kind, num_bytes, seconds, fragment)
        with self._lock:
            self._add(kind, direction, num_bytes, seconds)
            self._write(row)

    def control(self, *, peer: str, direction: Direction, num_bytes: int) -> None:
        """Counts a control message, its header added."""
        self.tally(peer=peer, direction=direction, kind="control", num_bytes=num_bytes + MESSAGE_HEADER_BYTES)

    def tally(self, *, peer: str, direction: Direction, kind: Kind, num_bytes: int, seconds: float = 0.0) -> None:
        """Counts one of many small transfers; `flush` writes their sums."""
        with self._lock:
            key = (peer, direction, kind)
            sum_bytes, sum_s = self._tallies.get(key, (0, 0.0))
            self._tallies[key] = sum_bytes + num_bytes, sum_s + seconds
            self._add(kind, direction, num_bytes, seconds)

    def totals(self) -> dict[tuple[Kind, Direction], Total]:
        """What was counted so far, also of what `flush` has not written yet."""
        with self._lock:
            return dict(self._totals)

    def _add(self, kind: Kind, direction: Direction, num_bytes: int, seconds: float) -> None:
        total = self._totals.get((kind, direction), Total())
        self._totals[kind, direction] = Total(total.bytes + num_bytes, total.seconds + seconds, total.transfers + 1)

    def flush(self, round_number: int) -> None:
        """Writes what was tallied since the last flush as rows of `round_number`."""
        with self._lock:
            sums, self._tallies = self._tallies, {}
            for (peer, direction, kind), (num_bytes, seconds) in sums.items():
                self._write(
                    Transfer(self._clock(), round_number, self._member, peer, direction, kind, num_bytes, seconds)
                )

    def _write(self, row: Transfer) -> None:
        self._file.write(json.dumps(vars(row)) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Writes what is left."""
        self.flush(0)
        self._file.close()
