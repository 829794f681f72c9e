"""Payloads on their way between virtual members: asked for and got, or put at the relay; counted as the real ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from comms.agreement import COORDINATOR, Entry, Problem
from comms.fluid import Stream
from comms.ledger import Direction
from comms.payloads import FETCHES_AT_ONCE, Parcel, stream_bytes
from comms.store import PayloadStore
from comms.transport import Arrival
from comms.virtual_network import VirtualNetwork
from protos import payload_pb2 as pb


class PayloadPool:
    """Every payload of a run: in the store of whoever made it, and in memory while others are likely to want it."""

    def __init__(self) -> None:
        self._recent = dict[str, tuple[int, bytes]]()
        self._stores = dict[str, PayloadStore]()

    def put(self, round_number: int, digest: str, payload: bytes, store: PayloadStore) -> None:
        """Notes a payload that `store` keeps, and lets go of those of rounds that are over."""
        if digest not in self._stores:
            recent = {name: kept for name, kept in self._recent.items() if kept[0] >= round_number - 1}
            self._recent = recent if len(recent) < len(self._recent) else self._recent
        self._recent[digest], self._stores[digest] = (round_number, payload), store

    def get(self, digest: str) -> bytes | None:
        """The payload, if it was ever made."""
        if digest in self._recent:
            return self._recent[digest][1]
        store = self._stores.get(digest)
        return None if store is None else store.get(digest)


def upload(network: VirtualNetwork, parcel: Parcel, on_done: Callable[[], None]) -> None:
    """Begins to put a payload at the relay; `on_done` when it has said that it is there."""
    here, world = parcel.replica, network.world
    digest, num_bytes = bytes.fromhex(parcel.digest), stream_bytes(parcel.num_bytes, "put")
    header = pb.PutHeader(digest=digest, num_bytes=parcel.num_bytes, replica=here, round=parcel.round, kind=parcel.kind)
    begun_s = 0.0

    def announced() -> None:
        nonlocal begun_s
        begun_s = world.now_s
        network.carry(here, COORDINATOR, num_bytes, arrived, is_payload=True)

    def arrived() -> None:
        _count(network, parcel, "received", num_bytes, begun_s)
        network.ask(COORDINATOR, here, pb.PutReply().ByteSize(), answered)

    def answered() -> None:
        _count(network, parcel, "sent", num_bytes, begun_s)
        on_done()

    def announce() -> None:
        network.ask(here, COORDINATOR, pb.PutRequest(header=header).ByteSize(), announced)

    network.connect(here, COORDINATOR, announce)


def _count(network: VirtualNetwork, parcel: Parcel, direction: Direction, num_bytes: int, begun_s: float) -> None:
    """A row in the ledger of the replica (`sent`) or of the relay."""
    is_sent = direction == "sent"
    member, other = (parcel.replica, COORDINATOR) if is_sent else (COORDINATOR, parcel.replica)
    network.ledger(member).transfer(
        round_number=parcel.round, peer=other, direction=direction, kind=parcel.kind, num_bytes=num_bytes,
        seconds=network.world.now_s - begun_s, fragment=parcel.fragment if direction == "sent" else "",
    )  # fmt: skip


@dataclass(eq=False)
class _Get:
    """One payload under way."""

    entry: Entry
    begun_s: float
    stream: Stream | None = None
    is_over: bool = False


class Search:
    """Gets the payloads of one round for one member, some at a time from each source."""

    def __init__(
        self,
        network: VirtualNetwork,
        pool: PayloadPool,
        member: str,
        round_number: int,
        arrive: Callable[[Arrival], None],
    ) -> None:
        self._network, self._pool, self._member, self._round, self._arrive = network, pool, member, round_number, arrive
        self._waiting = list[deque[Entry]]()
        self._under_way = set[_Get]()

    def begin(self, source: str, entries: deque[Entry]) -> None:
        """Gets one owner's payloads from `source`."""
        self._waiting.append(entries)
        for _ in range(min(FETCHES_AT_ONCE, len(entries))):
            self._next(source, entries)

    def give_up(self, patience_s: float) -> None:
        """What is not here by now won't be had."""
        missing = [entry for entries in self._waiting for entry in entries]
        for get in list(self._under_way):
            get.is_over = True
            if get.stream is not None:
                self._network.cancel(get.stream)
            missing.append(get.entry)
        self._under_way.clear()
        for entries in self._waiting:
            entries.clear()
        for entry in missing:
            why = f"no payload {entry.fragment} of replica {entry.replica} in {patience_s:g} s (its link is too slow)"
            self._arrive(Arrival(entry, Problem(entry.digest, why)))

    def _next(self, source: str, entries: deque[Entry]) -> None:
        if not entries:
            return
        get = _Get(entries.popleft(), self._network.world.now_s)
        self._under_way.add(get)
        request = pb.GetRequest(
            digest=bytes.fromhex(get.entry.digest), replica=self._member, round=self._round, kind="pseudo_gradient"
        ).ByteSize()

        def asked() -> None:
            if not get.is_over:
                self._give(source, get, entries)

        self._network.connect(self._member, source, lambda: self._network.ask(self._member, source, request, asked))

    def _give(self, source: str, get: _Get, entries: deque[Entry]) -> None:
        """The source begins to send."""
        num_bytes, begun_s = stream_bytes(get.entry.num_bytes), self._network.world.now_s

        def left() -> None:
            get.stream = None
            self._count(source, self._member, "sent", num_bytes, begun_s=begun_s)

        def arrived() -> None:
            if get.is_over:
                return
            self._count(self._member, source, "received", num_bytes, begun_s=get.begun_s, fragment=get.entry.fragment)
            self._under_way.discard(get)
            payload = self._pool.get(get.entry.digest)
            self._next(source, entries)
            content = Problem(get.entry.digest, "it is not here") if payload is None else payload
            self._arrive(Arrival(get.entry, content))

        get.stream = self._network.carry(source, self._member, num_bytes, arrived, left, is_payload=True)

    def _count(
        self, member: str, peer: str, direction: Direction, num_bytes: int, *, begun_s: float, fragment: str = ""
    ) -> None:
        self._network.ledger(member).transfer(
            round_number=self._round, peer=peer, direction=direction, kind="pseudo_gradient", num_bytes=num_bytes,
            seconds=self._network.world.now_s - begun_s, fragment=fragment,
        )  # fmt: skip
