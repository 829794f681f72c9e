"""The ranks of one replica as one of them sees the others: tensors to send and to receive, and nobody lost unnoticed.

Knows no torch: a tensor is a header and bytes. `comms/process_group.py` offers this to torch.distributed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import grpc

from comms.channel import Channels, listen, new_server
from comms.errors import CommsError, RankLost
from comms.inbox import Inbox, Received
from comms.ledger import Ledger
from comms.loop_thread import LoopThread
from comms.outbox import Outbox
from comms.place import DEADLINE_KEY, Bounds, Place
from comms.rendezvous import RendezvousClient, RendezvousService
from comms.security import Security, Tls
from comms.tensor_header import KindOf, TensorHeader, kind_by_direction
from comms.tensor_stream import TensorSender, TensorService
from comms.wire import text
from protos import rendezvous_pb2_grpc, tensors_pb2_grpc

T = TypeVar("T")
_GOODBYE_S = 2.0
_log = logging.getLogger(__name__)


class RankGroup:
    """One rank's end of the group. Listens from the beginning on; `form` brings the ranks together."""

    def __init__(
        self,
        place: Place,
        security: Security,
        ledger: Ledger,
        *,
        listen_address: str,
        bounds: Bounds | None = None,
        kind_of: KindOf = kind_by_direction,
    ) -> None:
        """Opens the server. Unreachable or InsecureAddress when it may not listen at `listen_address`."""
        if isinstance(security, Tls) and security.member != place.replica:
            raise CommsError(f"a rank of {place.replica!r} cannot show the certificate of {security.member!r}")
        self.place = place
        self.bounds = bounds or Bounds()
        self._ledger = ledger
        self._kind_of = kind_of
        self._channels = Channels(security)
        self._outboxes = {rank: Outbox(self.bounds.buffer_bytes, partial(self._wake, rank)) for rank in place.others}
        self._inboxes = {rank: Inbox(self.bounds.buffer_bytes, partial(self._notice, rank)) for rank in place.others}
        self._wakes = {rank: asyncio.Event() for rank in place.others}
        self._senders: dict[int, TensorSender] = {}
        self._running: list[asyncio.Task[None]] = []
        self._service = TensorService(place, self._inboxes, self.bounds, ledger, self._fail)
        self._server: grpc.aio.Server | None = None
        self._rendezvous: RendezvousClient | None = None
        self._is_closed = False
        self._loop = LoopThread(f"the network of rank {place.rank}", self.bounds.deadline_s, DEADLINE_KEY)
        try:
            self.address = self._loop.wait(self._serve(listen_address, security))
        except CommsError:
            self._loop.stop()
            raise

    def form(self, rendezvous_address: str = "") -> None:
        """Waits until every rank has reached every other, by way of rank 0's address (which rank 0 may leave out).

        RankLost names a rank that is not there within deadline_s, or that cannot be reached.
        """
        address = rendezvous_address or self.address
        self._loop.wait(self._form(address))

    @property
    def rendezvous(self) -> RendezvousClient:
        """The store at rank 0; there from `form` on."""
        if self._rendezvous is None:
            raise AssertionError("the group has not been formed")
        return self._rendezvous

    def ask(self, work: Any) -> Any:
        """Does a call of the rendezvous, and waits for it."""
        return self._loop.wait(work)

    # ---- tensors ----

    def send(self, destination: int, header: TensorHeader, content: memoryview) -> Future[None]:
        """Sends a tensor; the future is done when `content`, bytes in one dimension, may be changed again."""
        return self._outboxes[destination].post(header, content)

    def receive(self, source: int, lane: str, tag: int) -> Future[Received]:
        """The next tensor that `source` sends with this lane and tag."""
        return self._inboxes[source].receive(lane, tag)

    def kind_of(self, destination: int, dtype: str) -> Any:
        """What a tensor counts as that goes from here to another rank."""
        return self._kind_of(self.place.rank, destination, dtype)

    def wait(self, future: Future[T], what: str, rank: int, phase: str, deadline_s: float | None = None) -> T:
        """What `future` holds, or RankLost after `deadline_s` (deadline_s of the bounds)."""
        wait_s = self.bounds.deadline_s if deadline_s is None else deadline_s
        try:
            return future.result(wait_s)
        except TimeoutError:
            raise RankLost(
                f"{self.place.peer(rank)} did not take part in {what} within {wait_s:g} s ({phase}). "
                f"Is it up? Raise {DEADLINE_KEY} if it is only slow."
            ) from None

    def close(self, failure: str = "") -> None:
        """Leaves: after all that was sent has been received, or at once, telling the others why, after a failure.

        RankLost when a rank does not receive what was sent to it within deadline_s.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._loop.wait(self._leave(text(failure)))
        finally:
            self._loop.stop()

    # ---- on the loop's thread ----

    async def _serve(self, address: str, security: Security) -> str:
        self._server = new_server()
        tensors_pb2_grpc.add_TensorsServicer_to_server(self._service, self._server)
        if self.place.rank == 0:
            service = RendezvousService(self.place, self._ledger)
            rendezvous_pb2_grpc.add_RendezvousServicer_to_server(service, self._server)
        bound = listen(self._server, address, security)
        await self._server.start()
        return bound

    async def _form(self, rendezvous_address: str) -> None:
        deadline_s, place = self.bounds.deadline_s, self.place
        until_s = time.monotonic() + deadline_s
        channel = self._channels.to(place.replica, rendezvous_address)
        self._rendezvous = RendezvousClient(channel, place, self._ledger, rendezvous_address)
        await self._rendezvous.set(f"address/{place.rank}", self.address.encode(), deadline_s)
        keys = [f"address/{rank}" for rank in place.others]
        addresses = await self._rendezvous.read(keys, until_s - time.monotonic())
        for rank, address in zip(place.others, addresses, strict=True):
            sender = TensorSender(
                place, rank, self._outboxes[rank], bounds=self.bounds, ledger=self._ledger, changed=self._wakes[rank]
            )
            to_it = partial(self._channels.to, place.replica, text(address.decode(errors="replace")))
            self._senders[rank] = sender
            self._running.append(asyncio.create_task(sender.run(to_it, self._fail)))
        for rank, sender in self._senders.items():
            await self._until_connected(rank, sender, until_s)

    async def _until_connected(self, rank: int, sender: TensorSender, until_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                await sender.connected.wait()
        except TimeoutError:
            raise RankLost(
                f"{self.place.peer(rank)} was not reached within {self.bounds.deadline_s:g} s (forming the group). "
                "Can every rank reach every other?"
            ) from None
        if sender.failure is not None:
            raise sender.failure

    def _fail(self, rank: int, error: RankLost) -> None:
        """Lets everything that waits for a rank fail, and everything that will."""
        if not self._is_closed:
            _log.info("%s", error)  # whoever waits for it hears of it
        self._inboxes[rank].fail(error)
        self._outboxes[rank].fail(error)

    async def _leave(self, failure: str) -> None:
        late = ""
        for sender in self._senders.values():
            sender.leave(failure)
        if self._running:
            wait_s = _GOODBYE_S if failure else self.bounds.deadline_s
            _, unfinished = await asyncio.wait(self._running, timeout=wait_s)
            late = ", ".join(self.place.peer(r) for r, o in self._outboxes.items() if unfinished and not o.is_empty)
        self._service.end()
        if self._server is not None:
            await self._server.stop(grace=_GOODBYE_S)
        await self._channels.close()
        for rank in self.place.others:
            self._fail(rank, RankLost(f"{self.place.peer(self.place.rank)} itself has left the group"))
        if late and not failure:
            raise RankLost(
                f"{late} did not receive what was sent to it within {self.bounds.deadline_s:g} s (leaving). "
                f"Is it up? Raise {DEADLINE_KEY} if it is only slow."
            )

    # ---- by any thread ----

    def _wake(self, rank: int) -> None:
        """Lets the sender to `rank` look into its outbox."""
        self._loop.call(self._wakes[rank].set)

    def _notice(self, rank: int) -> None:
        """Lets the stream from `rank` look into its inbox."""
        self._loop.call(partial(self._service.notice, rank))
