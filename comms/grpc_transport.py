"""The transport of real runs: gRPC to the coordinator and between replicas, on an event loop in its own thread.

Training blocks its thread for seconds; heartbeats, serving payloads and fetching them must not wait for it. So all
of gRPC lives on the loop's thread, and the methods of `GrpcTransport` hand work over to it:

    conversation.py     what is said to the coordinator and heard of it
    payload_fetch.py    payloads from the others            snapshot_fetch.py    a snapshot from the others
    relay_upload.py     payloads to the coordinator         peers.py             who and where the others are

What the training thread has from it is what `LoopThread` hands back, and ends as surely as that says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc

from comms import wire
from comms.agreement import (
    CommittedRound,
    CoordinatorMessage,
    Holder,
    Join,
    Manifest,
    MemberMessage,
    Offer,
    Payload,
    Refusal,
    SnapshotSource,
)
from comms.channel import GOODBYE_S, listen, new_server, own_host
from comms.conversation import Conversation
from comms.errors import CommsError, Refused
from comms.ledger import Ledger
from comms.loop_thread import Delivery, LoopThread
from comms.payload_fetch import PayloadFetch
from comms.payloads import Parcel, PayloadService
from comms.peers import Peers
from comms.relay_upload import upload
from comms.snapshot_fetch import SnapshotFetch
from comms.snapshots import Lender
from comms.store import PayloadStore
from comms.transport import Arrival
from comms.transport_settings import TransportSettings
from protos import payload_pb2_grpc

_CLOSED_WITHIN_S = 10.0
_log = logging.getLogger(__name__)


class GrpcTransport:
    """A `Transport` over gRPC. Opens its server (route "direct") when it is made: see `address`."""

    def __init__(self, settings: TransportSettings, store: PayloadStore, ledger: Ledger) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._peers = Peers(settings, ledger)
        self._conversation = Conversation(self._peers)
        self._heard: Delivery[CoordinatorMessage] | None = None
        self._uploads: list[Future[None]] = []
        self._lender = Lender()
        self._server: grpc.aio.Server | None = None
        self._loop = LoopThread(
            f"the network of {settings.replica}", settings.outage_deadline_s, "exchange.outage_deadline_s"
        )
        self.address = ""
        """host:port at which this replica serves its payloads; empty when it relays."""
        if settings.route == "direct":
            try:
                self.address = self._loop.wait(self._serve())
            except CommsError:
                self._loop.stop()
                raise

    # ---- Transport ----

    def join(self, join: Join) -> None:
        """Begins the conversation with the coordinator."""
        wire.member_message_to_pb(join)  # what can't be said is the caller's mistake, and must be found here
        self._heard = self._loop.deliver(self._conversation.heard(join))

    def send(self, message: MemberMessage) -> None:
        """Says something to the coordinator; should the stream break, what still matters of it is said again."""
        wire.member_message_to_pb(message)  # as above
        self._loop.call(partial(self._conversation.say, message))

    def receive(self) -> CoordinatorMessage:
        """Waits for what the coordinator says next."""
        message = None if self._heard is None else next(self._heard, None)
        if message is None:
            raise CommsError("nothing is to be heard of the coordinator: the conversation is over, or has not begun")
        if isinstance(message, Refusal):
            raise Refused(message.reason)
        return message

    def publish(self, round_number: int, fragment: str, payload: bytes) -> Payload:
        """Stores a payload here, and begins to send it to the coordinator under route "relay"."""
        digest = self._store.put(payload)
        if self._settings.route == "relay":
            parcel = Parcel(digest, len(payload), round_number, self._settings.replica, fragment=fragment)
            self._uploads.append(self._loop.start(upload(self._peers, parcel, payload)))
        return Payload(fragment, digest, len(payload))

    def finish_publishing(self) -> None:
        """Waits for the uploads of route "relay"; DeadlineError names the coordinator when one does not arrive."""
        uploads, self._uploads = self._uploads, []
        for under_way in uploads:
            self._loop.result(under_way)

    def fetch(
        self, round_number: int, manifest: Manifest, holders: Sequence[Holder], *, committed: bool
    ) -> Iterator[Arrival]:
        """Each payload of a manifest once, as they arrive; from this replica's store where it holds them."""
        contents = [(entry, self._store.get(entry.digest)) for entry in manifest]
        lacking = tuple(entry for entry, content in contents if content is None)
        fetch = PayloadFetch(self._peers, self._store, round_number, holders, committed=committed)
        arrivals = self._loop.deliver(fetch.arrivals(lacking))
        try:
            yield from (Arrival(entry, content) for entry, content in contents if content is not None)
            yield from arrivals
        finally:
            arrivals.cancel()

    def history(self, after_round: int) -> list[CommittedRound]:
        """The rounds committed after one, oldest first."""
        return self._loop.wait(self._peers.history(after_round))

    def offer(self, round_number: int, theta_digest: str, snapshot: Path) -> None:
        """Lends a file, and says so when it has been read through; under "relay" nobody could fetch it from here."""
        if self.address:
            self._loop.start(self._lend(round_number, theta_digest, snapshot))

    def fetch_snapshot(self, source: SnapshotSource, into: Path, most_bytes: int) -> None:
        """Writes a snapshot to `into`; CommsError when nobody gives it, or when it is none."""
        settings, client_to = self._settings, self._peers.payloads_at
        fetch = SnapshotFetch(source, settings.replica, self._store, client_to, settings.outage_deadline_s, most_bytes)
        self._loop.wait(fetch.into(into))

    def close(self) -> None:
        """Sends what is still to be said, ends the conversation, and stops handing out payloads."""
        with suppress(CommsError, TimeoutError):
            self._loop.wait(self._shut_down())
        self._loop.stop()
        self._lender.close()

    # ---- on the loop's thread ----

    async def _serve(self) -> str:
        self._server = new_server()
        service = PayloadService(self._store, self._ledger, lender=self._lender)
        payload_pb2_grpc.add_PayloadsServicer_to_server(service, self._server)
        address = listen(self._server, f"{own_host(self._settings.coordinator_address)}:0", self._settings.security)
        await self._server.start()
        return address

    async def _lend(self, round_number: int, theta_digest: str, snapshot: Path) -> None:
        try:
            digest, num_bytes = await asyncio.to_thread(self._lender.lend, snapshot)
        except OSError as error:
            _log.warning("the snapshot of round %d can't be offered: %s", round_number, error)
            return
        self._conversation.say(Offer(round_number, theta_digest, digest, num_bytes))

    async def _shut_down(self) -> None:
        async with asyncio.timeout(_CLOSED_WITHIN_S):
            self._conversation.end()  # after what was said last; the coordinator hears it, and hangs up
            if self._heard is not None:
                with suppress(TimeoutError, asyncio.CancelledError, CommsError):
                    await asyncio.wait_for(asyncio.wrap_future(self._heard.work), GOODBYE_S)
            await self._peers.close()
            if self._server is not None:
                await self._server.stop(grace=GOODBYE_S)
