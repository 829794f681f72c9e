"""A replica of several ranks as one member of the run: it speaks with one voice and carries with many hands.

The first rank talks to the coordinator. What it hears all ranks hear; what the ranks have to say is put together and
said once. Payloads go no such way: each rank hands out what it has encoded, and fetches what it needs, by itself.

    coordinator <--> rank 0 <--> the other ranks             messages, a few hundred bytes
    other replicas <--> each rank                            payloads

So every rank runs the same round (dist_train/round.py), with a `CrewTransport` in place of the transport of a replica
of one. `Crew` is what that needs of the ranks' own network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from comms import wire
from comms.agreement import (
    Acknowledge,
    Applied,
    CommittedRound,
    CoordinatorMessage,
    Holder,
    Join,
    Manifest,
    MemberMessage,
    Payload,
    Report,
    SnapshotSource,
)
from comms.errors import CommsError
from comms.transport import Arrival, Transport
from protos import round_pb2 as pb

SIGN_BYTES = 1
"""Before what rank 0 hears, on its way to the others: whether it heard it, or why not."""


class Crew(Protocol):
    """The ranks of one replica. Every call is made by all of them, in the same order, and blocks until all have."""

    rank: int
    ranks: int

    def broadcast(self, message: bytes | None) -> bytes:
        """What rank 0 gives to all; the others give None."""
        ...

    def all_gather(self, message: bytes) -> list[bytes]:
        """What each rank gives, by rank."""
        ...


class CrewTransport:
    """A `Transport` for one rank of several; `inner` is its own, with which only rank 0 talks to the coordinator."""

    def __init__(self, inner: Transport, crew: Crew, address: str) -> None:
        self._inner = inner
        self._crew = crew
        self.address = address
        """Where this rank serves payloads."""

    def join(self, join: Join) -> None:
        """Joins as one replica that serves its payloads at the addresses of all ranks."""
        others = [address.decode() for address in self._crew.all_gather(self.address.encode())[1:]]
        if self._is_voice:
            self._inner.join(replace(join, rank_addresses=tuple(filter(None, others))))

    def send(self, message: MemberMessage) -> None:
        """Says what all ranks have to say, as one."""
        parts = self._crew.all_gather(wire.member_message_to_pb(message).SerializeToString())
        if self._is_voice:
            self._inner.send(
                combined([wire.member_message_from_pb(pb.MemberMessage.FromString(part)) for part in parts])
            )

    def receive(self) -> CoordinatorMessage:
        """What rank 0 hears. What ends its conversation ends all ranks."""
        return wire.coordinator_message_from_pb(pb.CoordinatorMessage.FromString(self._shared(self._heard)))

    def publish(self, round_number: int, fragment: str, payload: bytes) -> Payload:
        """Hands out this rank's payload."""
        return self._inner.publish(round_number, fragment, payload)

    def finish_publishing(self) -> None:
        """Waits for this rank's uploads."""
        self._inner.finish_publishing()

    def fetch(
        self, round_number: int, manifest: Manifest, holders: Sequence[Holder], *, committed: bool
    ) -> Iterator[Arrival]:
        """Gets what this rank asks for."""
        return self._inner.fetch(round_number, manifest, holders, committed=committed)

    def history(self, after_round: int) -> list[CommittedRound]:
        """What rank 0 is told, so that all ranks redo the same rounds."""

        def asked() -> bytes:
            reply = pb.CommittedRounds(rounds=map(wire.committed_to_pb, self._inner.history(after_round)))
            return reply.SerializeToString()

        return [wire.committed_from_pb(one) for one in pb.CommittedRounds.FromString(self._shared(asked)).rounds]

    def offer(self, round_number: int, theta_digest: str, snapshot: Path) -> None:
        """Lends nothing: a rank has a part of a snapshot only."""
        del round_number, theta_digest, snapshot

    def fetch_snapshot(self, source: SnapshotSource, into: Path, most_bytes: int) -> None:
        """Gets it for this rank."""
        self._inner.fetch_snapshot(source, into, most_bytes)

    def close(self) -> None:
        """Ends this rank's part."""
        self._inner.close()

    @property
    def _is_voice(self) -> bool:
        return self._crew.rank == 0

    def _heard(self) -> bytes:
        return wire.coordinator_message_to_pb(self._inner.receive()).SerializeToString()

    def _shared(self, work: Callable[[], bytes]) -> bytes:
        """What `work` gives on rank 0, on all ranks; the CommsError that it raises, too."""
        failure: CommsError | None = None
        message: bytes | None = None
        if self._is_voice:
            try:
                message = b"+" + work()
            except CommsError as error:
                failure, message = error, b"-" + str(error).encode()
        message = self._crew.broadcast(message)
        if failure is not None:
            raise failure
        if message[:SIGN_BYTES] == b"-":
            raise CommsError(f"rank 0: {message[SIGN_BYTES:].decode(errors='replace')}")
        return message[SIGN_BYTES:]


def combined(parts: Sequence[MemberMessage]) -> MemberMessage:
    """What several ranks say at the same moment of a round, as one message; what is the replica's, rank 0 knows."""
    first = parts[0]
    match first:
        case Report():
            reports = [part for part in parts if isinstance(part, Report)]
            payloads = tuple(payload for report in reports for payload in report.payloads)
            loss = math.fsum(report.loss for report in reports)
            return replace(first, payloads=payloads, loss=loss, phase_s=_slowest([one.phase_s for one in reports]))
        case Acknowledge():
            acknowledgements = [part for part in parts if isinstance(part, Acknowledge)]
            problems = {problem.digest: problem for one in acknowledgements for problem in one.problems}
            return replace(first, problems=tuple(problems.values()))
        case Applied():
            applied = [part for part in parts if isinstance(part, Applied)]
            return replace(
                first,
                validation_loss_sum=math.fsum(one.validation_loss_sum for one in applied),
                validation_targets=sum(one.validation_targets for one in applied),
                phase_s=_slowest([one.phase_s for one in applied]),
                health=_of_the_whole([one.health for one in applied]),
            )
        case _:
            return first


def _slowest(phases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each phase as long as the slowest rank took."""
    return {
        phase: max(one.get(phase, 0.0) for one in phases) for phase in dict.fromkeys(p for one in phases for p in one)
    }


def _of_the_whole(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Figures of the ranks' parts as figures of the whole: a norm is that of all parts together, others the largest."""
    found: dict[str, list[float]] = {}
    for part in parts:
        for figure, value in part.items():
            found.setdefault(figure, []).append(value)
    return {
        figure: math.hypot(*values) if figure.endswith("_norm") else max(values) for figure, values in found.items()
    }
