"""A `Transport` of virtual members: the same bytes, in simulated seconds.

What the real transport (comms.grpc_transport) sends and counts, this one does: each message as it is encoded, two
payloads at a time from each owner, uploads to the relay at once, heartbeats when there is nothing to say. Payloads are
kept by those who made them; who gets one gets those bytes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comms import wire
from comms.agreement import (
    COORDINATOR,
    CommittedRound,
    CoordinatorMessage,
    Entry,
    Finish,
    Heartbeat,
    Holder,
    Join,
    Manifest,
    MemberMessage,
    Payload,
    Refusal,
    SnapshotSource,
)
from comms.errors import CommsError, Refused
from comms.ledger import MESSAGE_HEADER_BYTES
from comms.payloads import Parcel
from comms.store import PayloadStore
from comms.transport import Arrival
from comms.transport_settings import Route
from comms.virtual_coordinator import VirtualCoordinator
from comms.virtual_network import VirtualNetwork
from comms.virtual_time import Actor
from comms.virtual_transfers import PayloadPool, Search, upload
from protos import round_pb2

_PATIENCE = 0.8
"""Of fetch_deadline_s: as the real transport's."""


@dataclass(frozen=True)
class VirtualSettings:
    """What all virtual members of a run have in common; see [exchange] of the config."""

    route: Route
    heartbeat_s: float
    fetch_deadline_s: float
    outage_deadline_s: float
    pool: PayloadPool


class VirtualTransport:
    """One virtual replica's end of the run. Its methods are for `actor`."""

    def __init__(
        self,
        actor: Actor,
        network: VirtualNetwork,
        coordinator: VirtualCoordinator,
        settings: VirtualSettings,
        store: PayloadStore,
    ) -> None:
        self._actor, self._network, self._coordinator = actor, network, coordinator
        self._settings, self._store, self._pool = settings, store, settings.pool
        self._inbox = deque[CoordinatorMessage]()
        self._uploads_under_way = 0
        self._own = set[str]()
        self._spoke_s: float | None = None

    def join(self, join: Join) -> None:
        """Begins the conversation with the coordinator."""
        self._say(join)

    def send(self, message: MemberMessage) -> None:
        """Says something to the coordinator."""
        self._say(message)

    def receive(self) -> CoordinatorMessage:
        """Waits for what the coordinator says next."""
        self._actor.wait(lambda: bool(self._inbox))
        message = self._inbox.popleft()
        if isinstance(message, Refusal):
            raise Refused(message.reason)
        if isinstance(message, Finish):
            self._count_heartbeats(self._actor.now_s)
        return message

    def publish(self, round_number: int, fragment: str, payload: bytes) -> Payload:
        """Keeps a payload, and begins to send it to the coordinator under route "relay"."""
        digest = self._store.put(payload)
        self._own.add(digest)
        self._pool.put(round_number, digest, payload, self._store)
        if self._settings.route == "relay":
            self._uploads_under_way += 1
            parcel = Parcel(digest, len(payload), round_number, self._actor.name, fragment=fragment)
            self._actor.at(lambda: upload(self._network, parcel, self._uploaded))
        return Payload(fragment, digest, len(payload))

    def finish_publishing(self) -> None:
        """Waits for the uploads of route "relay"."""
        if self._uploads_under_way:
            self._actor.wait(lambda: self._uploads_under_way == 0)

    def fetch(
        self, round_number: int, manifest: Manifest, holders: Sequence[Holder], *, committed: bool
    ) -> Iterator[Arrival]:
        """Each payload of a manifest once, as they arrive."""
        del holders  # whoever made a payload has it for as long as the run lasts
        self._actor.catch_up()
        world = self._network.world
        begun_s, arrived, wanted = world.now_s, list[tuple[float, Arrival]](), defaultdict[str, deque[Entry]](deque)
        for entry in manifest:
            payload = self._pool.get(entry.digest) if entry.digest in self._own else None
            if payload is None:
                wanted[entry.replica].append(entry)
            else:
                arrived.append((begun_s, Arrival(entry, payload)))

        def arrive(arrival: Arrival) -> None:
            arrived.append((world.now_s, arrival))
            if len(arrived) == len(manifest):
                self._actor.wake()

        if wanted:
            settings = self._settings
            search = Search(self._network, self._pool, self._actor.name, round_number, arrive)
            for owner, entries in wanted.items():
                search.begin(COORDINATOR if settings.route == "relay" else owner, entries)
            patience_s = settings.outage_deadline_s if committed else _PATIENCE * settings.fetch_deadline_s
            world.at(begun_s + patience_s, lambda: search.give_up(patience_s))
            self._actor.wait(lambda: len(arrived) == len(manifest))
        # What arrives early is checked while the rest is still on its way.
        self._actor.go_back(begun_s)
        for arrived_s, arrival in arrived:
            self._actor.be_at(arrived_s)
            yield arrival
        self._actor.be_at(world.now_s)

    def history(self, after_round: int) -> list[CommittedRound]:
        """The rounds committed after one, oldest first."""
        rounds = self._coordinator.history[after_round:]
        here, done = self._actor.name, list[int]()
        request = round_pb2.HistoryRequest(after_round=after_round).ByteSize()
        answer = sum(wire.committed_to_pb(committed).ByteSize() + MESSAGE_HEADER_BYTES for committed in rounds)

        def answered() -> None:
            done.append(1)
            self._actor.wake()

        self._actor.catch_up()
        self._network.ask(here, COORDINATOR, request, lambda: self._network.ask(COORDINATOR, here, answer, answered))
        self._actor.wait(lambda: bool(done))
        return rounds

    def offer(self, round_number: int, theta_digest: str, snapshot: Path) -> None:
        """Nothing: nobody who is virtual joins late."""

    def fetch_snapshot(self, source: SnapshotSource, into: Path, most_bytes: int) -> None:
        """CommsError: see `offer`."""
        del into, most_bytes
        raise CommsError(f"virtual members lend no snapshots (round {source.offer.round})")

    def close(self) -> None:
        """Nothing is held."""

    def _say(self, message: MemberMessage) -> None:
        """At this member's own time, after the heartbeats that would have gone before."""
        encoded, actor = wire.member_message_to_pb(message), self._actor
        self._count_heartbeats(actor.now_s)
        self._spoke_s = actor.now_s

        def arrived() -> None:
            if isinstance(message, Join):
                self._coordinator.attend(message, self._listen)
            else:
                self._coordinator.hear(actor.name, message)

        actor.at(lambda: self._network.say(actor.name, COORDINATOR, encoded.ByteSize(), arrived))

    def _listen(self, message: CoordinatorMessage) -> None:
        self._inbox.append(message)
        self._actor.wake()

    def _uploaded(self) -> None:
        self._uploads_under_way -= 1
        self._actor.wake()

    def _count_heartbeats(self, now_s: float) -> None:
        """One for every heartbeat_s in which nothing was said; too small to be felt on any line."""
        silent_s = 0.0 if self._spoke_s is None else now_s - self._spoke_s
        beats = int(silent_s / self._settings.heartbeat_s)
        num_bytes, here = wire.member_message_to_pb(Heartbeat()).ByteSize(), self._actor.name
        for _ in range(beats):
            self._network.ledger(here).control(peer=COORDINATOR, direction="sent", num_bytes=num_bytes)
            self._network.ledger(COORDINATOR).control(peer=here, direction="received", num_bytes=num_bytes)
