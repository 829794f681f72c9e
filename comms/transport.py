"""The one abstraction of this package: what a replica can say, hear, hand out and get, whatever carries it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from comms.agreement import (
    CommittedRound,
    CoordinatorMessage,
    Entry,
    Holder,
    Join,
    Manifest,
    MemberMessage,
    Payload,
    Problem,
    SnapshotSource,
)


@dataclass(frozen=True)
class Arrival:
    """A payload of a manifest that has been fetched, or why it can't be had."""

    entry: Entry
    content: bytes | Problem


class Transport(Protocol):
    """One replica's end of the run. All methods are called by one thread and may block, each within a bound."""

    def join(self, join: Join) -> None:
        """Begins the conversation with the coordinator."""
        ...

    def send(self, message: MemberMessage) -> None:
        """Says something to the coordinator; does not wait until it is heard."""
        ...

    def receive(self) -> CoordinatorMessage:
        """Waits for what the coordinator says next. Refused, or Unreachable after exchange.outage_deadline_s."""
        ...

    def publish(self, round_number: int, fragment: str, payload: bytes) -> Payload:
        """Makes a payload available to the others, and returns at once with what to report of it."""
        ...

    def finish_publishing(self) -> None:
        """Waits until everything published is where others can get it."""
        ...

    def fetch(
        self, round_number: int, manifest: Manifest, holders: Sequence[Holder], *, committed: bool
    ) -> Iterator[Arrival]:
        """Each payload of a manifest once, as they arrive, this replica's own among them.

        What is `committed` must be had: it is waited for through an outage. What is only proposed is given up soon
        when nobody who is there has it.
        """
        ...

    def history(self, after_round: int) -> list[CommittedRound]:
        """The rounds committed after one, oldest first."""
        ...

    def offer(self, round_number: int, theta_digest: str, snapshot: Path) -> None:
        """Lends a file with the outer parameters after a round to whoever needs to catch up; returns at once."""
        ...

    def fetch_snapshot(self, source: SnapshotSource, into: Path, most_bytes: int) -> None:
        """Gets a snapshot from all who hold it, by parts; CommsError when it can't be had. Its content is unchecked."""
        ...

    def close(self) -> None:
        """Ends the conversation and stops handing out payloads."""
        ...
