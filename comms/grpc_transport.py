"""The transport of real runs: gRPC to the coordinator and between replicas, on an event loop in its own thread.

Training blocks its thread for seconds; heartbeats, serving payloads and fetching them must not wait for it. So all
of gRPC lives on the loop's thread, and the methods of `GrpcTransport` hand work over to it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import grpc

from comms import wire
from comms.agreement import (
    COORDINATOR,
    Applied,
    CommittedRound,
    CoordinatorMessage,
    Entry,
    Finish,
    Heartbeat,
    Holder,
    Join,
    Manifest,
    MemberMessage,
    Offer,
    Payload,
    Problem,
    Refusal,
    Report,
    SnapshotSource,
)
from comms.channel import Channels, listen, new_server, own_host
from comms.errors import CommsError, DeadlineError, Refused, Unreachable
from comms.join_token import prove, read_token
from comms.ledger import Ledger
from comms.payloads import FETCHES_AT_ONCE, Parcel, PayloadClient, PayloadService
from comms.security import Security, Tls
from comms.snapshot_fetch import SnapshotFetch
from comms.snapshots import Lender
from comms.store import PayloadStore
from comms.transport import Arrival
from protos import payload_pb2_grpc, round_pb2_grpc
from protos import round_pb2 as pb

Route = Literal["direct", "relay"]
T = TypeVar("T")
_log = logging.getLogger(__name__)
_RETRY_S = 0.25
_SLOWER, _LONGEST_PAUSE_S = 1.25, 5.0
"""Each further attempt to reach the coordinator waits so much longer: by a quarter of how long it has been gone."""
_GOODBYE_S = 1.0
_Call = grpc.aio.StreamStreamCall[pb.MemberMessage, pb.CoordinatorMessage]


@dataclass(frozen=True)
class TransportSettings:
    """How one replica reaches the others; see [exchange] and [security] of the config."""

    replica: str
    coordinator_address: str
    route: Route
    security: Security
    heartbeat_s: float
    fetch_deadline_s: float
    outage_deadline_s: float
    whereabouts: Callable[[], str | None] | None = None
    """Says where the coordinator is now, as far as that is known; may take seconds. None: it does not move."""
    liveness_deadline_s: float = 15.0


@dataclass(frozen=True)
class _Search:
    """What `fetch` looks for payloads with."""

    round: int
    holders: tuple[Holder, ...]
    committed: bool
    patience_s: float
    deadline_s: float


def _is_lost(owner: str, sources: Sequence[Holder], empty: Container[str]) -> bool:
    """Whether nobody can give an owner's payload: it is not among those who are there, and they don't hold it."""
    there = {source.replica for source in sources}
    return owner not in there and all(replica in empty for replica in there)


class GrpcTransport:
    """A `Transport` over gRPC. Opens its server (route "direct") when it is made: see `address`."""

    def __init__(self, settings: TransportSettings, store: PayloadStore, ledger: Ledger) -> None:
        self._settings = settings
        self._coordinator_address = settings.coordinator_address
        self._store = store
        self._ledger = ledger
        self._inbox = queue.Queue[CoordinatorMessage | CommsError]()
        self._uploads: list[Future[None]] = []
        self._channels = Channels(settings.security, settings.liveness_deadline_s)
        self._was_heard = False
        self._join: Join | None = None
        self._report: Report | None = None
        self._offer: Offer | None = None
        self._lender = Lender()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="transport", daemon=True)
        self._thread.start()
        self._outbox: asyncio.Queue[pb.MemberMessage | None] = asyncio.Queue()
        self._conversation: Future[None] | None = None
        self._server: grpc.aio.Server | None = None
        self.address = ""
        """host:port at which this replica serves its payloads; empty when it relays."""
        if settings.route == "direct":
            try:
                self.address = self._wait(self._serve())
            except CommsError:
                self._stop_loop()
                raise

    # ---- Transport ----

    def join(self, join: Join) -> None:
        """Begins the conversation with the coordinator."""
        wire.member_message_to_pb(join)  # what can't be said is the caller's mistake, and must be found here
        self._join = join
        self._conversation = self._start(self._converse())

    def send(self, message: MemberMessage) -> None:
        """Says something to the coordinator; kept and said again when the stream breaks."""
        encoded = wire.member_message_to_pb(message)
        if isinstance(message, Report):
            self._report = message
        elif isinstance(message, Offer):
            self._offer = message
        elif isinstance(message, Applied) and self._join is not None:
            self._join = replace(self._join, applied_round=message.round, theta_digest=message.theta_digest)
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, encoded)

    def receive(self) -> CoordinatorMessage:
        """Waits for what the coordinator says next."""
        message = self._inbox.get()
        if isinstance(message, CommsError):
            raise message
        if isinstance(message, Refusal):
            raise Refused(message.reason)
        return message

    def publish(self, round_number: int, fragment: str, payload: bytes) -> Payload:
        """Stores a payload here, and begins to send it to the coordinator under route "relay"."""
        digest = self._store.put(payload)
        if self._settings.route == "relay":
            parcel = Parcel(digest, len(payload), round_number, self._settings.replica, fragment=fragment)
            self._uploads.append(self._start(self._upload(parcel, payload)))
        return Payload(fragment, digest, len(payload))

    def finish_publishing(self) -> None:
        """Waits for the uploads of route "relay"; DeadlineError names the coordinator when one does not arrive."""
        uploads, self._uploads = self._uploads, []
        for upload in uploads:
            upload.result()

    def fetch(
        self, round_number: int, manifest: Manifest, holders: Sequence[Holder], *, committed: bool
    ) -> Iterator[Arrival]:
        """Each payload of a manifest once, as they arrive; from this replica's store where it holds them."""
        arrivals = queue.Queue[Arrival]()
        wanted = defaultdict[str, list[Entry]](list)
        for entry in manifest:
            content = self._store.get(entry.digest)
            if content is None:
                wanted[entry.replica].append(entry)
            else:
                arrivals.put(Arrival(entry, content))
        settings = self._settings
        # A proposal: before the coordinator gives us up.
        patience_s = settings.outage_deadline_s if committed else 0.8 * settings.fetch_deadline_s
        search = _Search(round_number, tuple(holders), committed, patience_s, time.monotonic() + patience_s)
        for entries in wanted.values():
            self._start(self._fetch_from(search, entries, arrivals))
        for _ in manifest:
            yield arrivals.get()

    def history(self, after_round: int) -> list[CommittedRound]:
        """The rounds committed after one, oldest first."""
        return self._wait(self._history(after_round))

    def offer(self, round_number: int, theta_digest: str, snapshot: Path) -> None:
        """Lends a file, and says so when it has been read through; under "relay" nobody could fetch it from here."""
        if self._server is not None:
            self._start(self._lend(round_number, theta_digest, snapshot))

    def fetch_snapshot(self, source: SnapshotSource, into: Path, most_bytes: int) -> None:
        """Writes a snapshot to `into`; CommsError when nobody gives it, or when it is none."""

        def client_to(holder: Holder) -> PayloadClient:
            return PayloadClient(self._channels.to(holder.replica, holder.address), holder.replica, self._ledger)

        patience_s = self._settings.outage_deadline_s
        fetch = SnapshotFetch(source, self._settings.replica, self._store, client_to, patience_s, most_bytes)
        self._wait(fetch.into(into))

    def close(self) -> None:
        """Sends what is still to be said, ends the conversation, and stops handing out payloads."""
        self._closing = True
        with suppress(RuntimeError):
            self._wait(self._shut_down())
        self._stop_loop()
        self._lender.close()

    # ---- on the loop's thread ----

    async def _serve(self) -> str:
        self._server = new_server()
        service = PayloadService(self._store, self._ledger, lender=self._lender)
        payload_pb2_grpc.add_PayloadsServicer_to_server(service, self._server)
        address = listen(self._server, f"{own_host(self._settings.coordinator_address)}:0", self._settings.security)
        await self._server.start()
        return address

    async def _converse(self) -> None:
        """Keeps a conversation with the coordinator going until the run is over or the coordinator is gone too long."""
        try:
            await self._converse_until_over()
        except CommsError as error:
            self._inbox.put(error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the thread that waits must hear of it
            self._inbox.put(CommsError(f"the conversation with the coordinator ended: {error!r}"))

    async def _converse_until_over(self) -> None:
        loop, outage_s = asyncio.get_running_loop(), self._settings.outage_deadline_s
        gone_since_s, pause_s, why = loop.time(), _RETRY_S, "no answer"
        while not self._closing:
            connected = False
            try:
                async with asyncio.timeout_at(gone_since_s + outage_s) as patience:
                    channel = self._coordinator_channel()
                    call = round_pb2_grpc.RoundsStub(channel).Attend()
                    await call.wait_for_connection()
                    connected = channel.get_state() is grpc.ChannelConnectivity.READY
                    patience.reschedule(None)
                    if await self._attend(call):
                        return
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                why = str(error.details())
                connected = connected and error.code() is not grpc.StatusCode.UNAUTHENTICATED
                _log.debug("conversation broke: %s", why)
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise Refused(f"the coordinator does not understand this replica: {why}") from None
                if error.code() is grpc.StatusCode.PERMISSION_DENIED or self._is_not_believed(error):
                    raise Refused(f"the coordinator does not let this replica in: {why}") from None
            if connected and not self._closing:
                # However long it had nothing to say: until now it was there.
                gone_since_s, pause_s = loop.time(), _RETRY_S
                _log.warning("lost the coordinator; trying again for %g s", outage_s)
            await self._look_for_coordinator()
            remaining_s = gone_since_s + outage_s - loop.time()
            if remaining_s <= 0:
                raise Unreachable(
                    f"the coordinator at {self._coordinator_address} has not answered for {outage_s:g} s "
                    f"({why}). Is it up? Raise exchange.outage_deadline_s."
                )
            await asyncio.sleep(min(remaining_s, pause_s * random.uniform(0.5, 1.5)))  # noqa: S311 - spreads reconnections
            pause_s = min(_SLOWER * pause_s, _LONGEST_PAUSE_S)

    def _is_not_believed(self, error: grpc.aio.AioRpcError) -> bool:
        """Whether our token is wrong for good. Once let in, it may just be on its way to one of the two machines."""
        return error.code() is grpc.StatusCode.UNAUTHENTICATED and not self._was_heard

    async def _attend(self, call: _Call) -> bool:
        """One conversation, until its stream ends; True when nothing more is to be said."""
        talker = asyncio.create_task(self._talk(call, self._opening()))
        try:
            while isinstance(encoded := await call.read(), pb.CoordinatorMessage):
                self._ledger.control(peer=COORDINATOR, direction="received", num_bytes=encoded.ByteSize())
                message = wire.coordinator_message_from_pb(encoded)
                self._was_heard = True
                self._inbox.put(message)
                if isinstance(message, Refusal | Finish):
                    return True
            return False
        finally:
            talker.cancel()
            call.cancel()

    def _opening(self) -> list[pb.MemberMessage]:
        """Who we are, and what the coordinator may have missed."""
        if self._join is None:
            raise AssertionError("a conversation began before join")
        opening = [self._proved(wire.member_message_to_pb(self._join))]
        if self._report is not None and self._report.round > self._join.applied_round:
            opening.append(wire.member_message_to_pb(self._report))
        if self._offer is not None:
            opening.append(wire.member_message_to_pb(self._offer))
        return opening

    async def _lend(self, round_number: int, theta_digest: str, snapshot: Path) -> None:
        try:
            digest, num_bytes = await asyncio.to_thread(self._lender.lend, snapshot)
        except OSError as error:
            _log.warning("the snapshot of round %d can't be offered: %s", round_number, error)
            return
        self.send(Offer(round_number, theta_digest, digest, num_bytes))

    async def _talk(self, call: _Call, opening: Sequence[pb.MemberMessage]) -> None:
        """Says the opening, then whatever there is to say, and that we live."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in opening:
                await self._say(call, message)
            while (encoded := await self._next_to_say()) is not None:
                await self._say(call, encoded)
            await call.done_writing()

    def _proved(self, encoded: pb.MemberMessage) -> pb.MemberMessage:
        """A Join with the proof that we know the run's token, as of now; as it is where there is none."""
        security = self._settings.security
        if isinstance(security, Tls):
            join, token = encoded.join, read_token(security.token)
            join.proved_at_s = time.time()
            join.proof = prove(token, security.run, join.replica, join.incarnation, join.proved_at_s)
        return encoded

    async def _next_to_say(self) -> pb.MemberMessage | None:
        try:
            async with asyncio.timeout(self._settings.heartbeat_s):
                return await self._outbox.get()
        except TimeoutError:
            return wire.member_message_to_pb(Heartbeat())

    async def _say(self, call: _Call, encoded: pb.MemberMessage) -> None:
        self._ledger.control(peer=COORDINATOR, direction="sent", num_bytes=encoded.ByteSize())
        await call.write(encoded)

    async def _history(self, after_round: int) -> list[CommittedRound]:
        deadline_s = self._settings.outage_deadline_s
        rounds = list[CommittedRound]()
        try:
            async for message in self._coordinator().History(
                pb.HistoryRequest(after_round=after_round), timeout=deadline_s
            ):
                size = message.ByteSize()
                self._ledger.control(peer=COORDINATOR, direction="received", num_bytes=size)
                rounds.append(wire.committed_from_pb(message))
        except grpc.aio.AioRpcError:
            raise DeadlineError(
                "the coordinator did not give the history", "catch-up", "outage_deadline_s", deadline_s, after_round
            ) from None
        return rounds

    async def _upload(self, parcel: Parcel, payload: bytes) -> None:
        """Puts a payload at the coordinator, again and again until it is there or the deadline has passed."""
        deadline_s = time.monotonic() + self._settings.outage_deadline_s
        while True:
            client = PayloadClient(self._coordinator_channel(), COORDINATOR, self._ledger)
            try:
                await client.put(parcel, payload, deadline_s - time.monotonic())
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    _log.info("payload %s is not wanted any more: %s", parcel.fragment, error.details())
                    return  # and the report, which comes after it, won't be either
                if error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OUT_OF_RANGE):
                    raise Refused(f"the coordinator does not take {parcel.fragment}: {error.details()}") from None
                if time.monotonic() + _RETRY_S >= deadline_s:
                    raise DeadlineError(
                        f"payload {parcel.fragment} did not reach the coordinator ({error.details()})",
                        "publish", "outage_deadline_s", self._settings.outage_deadline_s, parcel.round,
                    ) from None  # fmt: skip
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _fetch_from(self, search: _Search, entries: Sequence[Entry], arrivals: queue.Queue[Arrival]) -> None:
        """Fetches one owner's payloads, two at once: while one asks and is checked, the other keeps the link busy."""
        turns = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def fetch_in_turn(entry: Entry) -> None:
            async with turns:
                try:
                    content: bytes | Problem = await self._fetch(search, entry)
                except Exception as error:  # noqa: BLE001 - whatever it was, the thread that waits must hear of it
                    content = Problem(entry.digest, f"{entry.fragment} of {entry.replica}: {error!r}")
                arrivals.put(Arrival(entry, content))

        await asyncio.gather(*(fetch_in_turn(entry) for entry in entries))

    async def _fetch(self, search: _Search, entry: Entry) -> bytes | Problem:
        """One payload, from the first source that gives it; a stream that broke goes on elsewhere where it stopped."""
        received = bytearray()
        parcel = Parcel(entry.digest, entry.num_bytes, search.round, self._settings.replica, fragment=entry.fragment)
        sources = self._sources(entry.replica, search.holders)
        why = "nobody who is there holds it"
        while True:
            empty = set[str]()
            for source in sources:
                remaining_s = search.deadline_s - time.monotonic()
                if remaining_s <= 0:
                    break
                try:
                    await self._get(source, parcel, received, remaining_s)
                except grpc.aio.AioRpcError as error:
                    why = f"{source.replica} at {source.address}: {error.details() or error.code().name}"
                    if error.code() is grpc.StatusCode.NOT_FOUND:
                        empty.add(source.replica)
                except CommsError as error:
                    why = str(error)
                else:
                    payload = bytes(received)
                    self._store.put(payload)
                    return payload
            present = await self._present()
            lost = present is not None and _is_lost(entry.replica, self._sources(entry.replica, present), empty)
            if time.monotonic() + _RETRY_S >= search.deadline_s or (lost and not search.committed):
                return Problem(
                    entry.digest,
                    f"no payload {entry.fragment} of replica {entry.replica} in {search.patience_s:g} s ({why})",
                )
            await asyncio.sleep(_RETRY_S)
            sources = sources if present is None else self._sources(entry.replica, present)

    async def _get(self, source: Holder, parcel: Parcel, received: bytearray, remaining_s: float) -> None:
        """Appends the rest of a payload to `received`; CommsError when it stands still because its source is away."""
        client = PayloadClient(self._channels.to(source.replica, source.address), source.replica, self._ledger)
        getting = asyncio.create_task(client.get(parcel, received, remaining_s))
        try:
            while True:
                before = len(received)
                done, _ = await asyncio.wait({getting}, timeout=2 * self._settings.heartbeat_s)
                if done:
                    getting.result()
                    return
                present = None if len(received) > before else await self._present()
                if present is not None and source.replica not in {COORDINATOR, *(one.replica for one in present)}:
                    raise CommsError(f"{source.replica} at {source.address}: it is away, and sends nothing")
        finally:
            getting.cancel()

    async def _present(self) -> tuple[Holder, ...] | None:
        """Who serves payloads now, by the coordinator's word; None when it does not answer."""
        try:
            status = await self._coordinator().Status(pb.StatusRequest(), timeout=5.0)
        except grpc.aio.AioRpcError:
            return None
        members = [member for member in status.members if member.address and member.state != "away"]
        return tuple(
            Holder(wire.name(member.replica, "status.replica"), address)
            for member in members
            for address in (member.address, *member.rank_addresses)
        )

    def _sources(self, owner: str, holders: Sequence[Holder]) -> list[Holder]:
        """Who may have an owner's payloads: itself, then the others; under "relay" the coordinator alone."""
        if self._settings.route == "relay":
            return [Holder(COORDINATOR, self._coordinator_address)]
        others = [holder for holder in holders if holder.replica not in (owner, self._settings.replica)]
        return [holder for holder in holders if holder.replica == owner] + others

    def _coordinator(self) -> round_pb2_grpc.RoundsAsyncStub:
        return round_pb2_grpc.RoundsStub(self._coordinator_channel())

    def _coordinator_channel(self) -> grpc.aio.Channel:
        return self._channels.to(COORDINATOR, self._coordinator_address)

    async def _look_for_coordinator(self) -> None:
        """From now on dials where the coordinator is found by name, if that is elsewhere."""
        if self._settings.whereabouts is None or self._closing:
            return
        found = await asyncio.to_thread(self._settings.whereabouts)
        if found is not None and found != self._coordinator_address:
            _log.warning("the coordinator has moved from %s to %s", self._coordinator_address, found)
            self._coordinator_address = found

    async def _shut_down(self) -> None:
        if self._conversation is not None and not self._conversation.done():
            self._outbox.put_nowait(None)  # after what was said last; the coordinator hears it, and hangs up
            with suppress(TimeoutError, asyncio.CancelledError, CommsError):
                await asyncio.wait_for(asyncio.wrap_future(self._conversation), _GOODBYE_S)
        await self._channels.close()
        if self._server is not None:
            await self._server.stop(grace=_GOODBYE_S)
        unfinished = asyncio.all_tasks() - {asyncio.current_task()}
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._start(work).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._loop.close()
