"""Payloads between peers: a service that hands them out and takes them in, and the two calls that use it.

A payload travels as a stream of chunks and is known by its SHA-256, so it does not matter from whom it comes, and a
stream that broke goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import grpc

from comms import failpoints, wire
from comms.caller import caller_of, refuse, require_name
from comms.errors import AccessError, TooSlow, WrongDigest
from comms.ledger import MESSAGE_HEADER_BYTES, Kind, Ledger
from comms.limits import Pace, Turns
from comms.snapshots import Lender
from comms.store import Incoming, PayloadStore, digest_of
from comms.uploads import Uploads
from protos import payload_pb2 as pb
from protos import payload_pb2_grpc as pb_grpc

CHUNK_BYTES = 256 * 1024
MOST_PAYLOAD_BYTES = 64 * 2**30
MOST_GETS = 16
"""Payloads that one caller gets at once; each is in memory for as long as it takes."""
FETCHES_AT_ONCE = 2
"""Payloads of one owner that a replica gets: while one is asked for and checked, the other keeps the link busy."""
CALL_BYTES = 350
"""About what a call takes beside its stream: a request, headers and trailers, in a packet each."""
_MOST_LATELY, _LATELY_BYTES, _LARGEST_LATELY_BYTES = 256, 2**24, 2**20
"""What is kept of payloads that were read lately, and how large one of them may be."""
_KINDS: dict[str, Kind] = {"pseudo_gradient": "pseudo_gradient", "state_transfer": "state_transfer"}


def stream_bytes(num_bytes: int, call: Literal["get", "put"] = "get") -> int:
    """What a payload of `num_bytes` comes to in a ledger: its chunks as messages of that call, with their headers."""
    full, rest = divmod(num_bytes, CHUNK_BYTES)
    chunks = [CHUNK_BYTES] * full + ([rest] if rest else [])
    fields = {"get": 1, "put": 2}[call]  # Chunk{data}, or PutRequest{Chunk{data}}
    return sum(MESSAGE_HEADER_BYTES + _message_bytes(chunk, fields) for chunk in chunks)


def _message_bytes(num_bytes: int, fields: int) -> int:
    """What `num_bytes` are as the only field of a protobuf message, that one as the only field of the next, …"""
    for _ in range(fields):
        num_bytes += 1 + max(1, -(-num_bytes.bit_length() // 7))  # the field's tag, and its length as a varint
    return num_bytes


def _chunks(payload: bytes, offset: int = 0) -> list[pb.Chunk]:
    view = memoryview(payload)
    return [pb.Chunk(data=bytes(view[i : i + CHUNK_BYTES])) for i in range(offset, len(payload), CHUNK_BYTES)]


@dataclass(frozen=True)
class Parcel:
    """A payload as it is asked for or sent: what it is, for which round, and in whose name."""

    digest: str
    num_bytes: int
    round: int
    replica: str
    """Who asks for it, or sends it."""
    kind: Kind = "pseudo_gradient"
    fragment: str = ""


class PayloadService(pb_grpc.PayloadsServicer):
    """Hands out what a store holds; with `uploads`, which say how much, it takes in what others put there."""

    def __init__(
        self,
        store: PayloadStore,
        ledger: Ledger,
        uploads: Uploads | None = None,
        pace: Pace | None = None,
        lender: Lender | None = None,
    ) -> None:
        self._store = store
        self._lender = lender
        self._ledger = ledger
        self._uploads = uploads
        self._pace = pace or Pace()
        self._turns = Turns(MOST_GETS)
        self._lately = _Lately()

    async def Get(
        self, request: pb.GetRequest, context: grpc.aio.ServicerContext[pb.GetRequest, pb.Chunk]
    ) -> AsyncIterator[pb.Chunk]:
        """Streams a payload from the offset that is asked for."""
        try:
            digest, peer = wire.digest(request.digest, "get.digest"), wire.name(request.replica, "get.replica")
            kind = _kind(request.kind)
            require_name(context, peer)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except AccessError as error:
            await refuse(context, error)
        self._ledger.control(peer=peer, direction="received", num_bytes=request.ByteSize())
        async with self._turns.of(caller_of(context) or context.peer()):
            payload = self._lately.get(digest)
            if payload is None:
                payload = await asyncio.to_thread(self._look_up, digest)
            if payload is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"payload {digest[:12]} is not here")
            self._lately.keep(digest, payload)
            started_s, sent_bytes = time.monotonic(), 0
            leash = _Leash(self._pace, context)
            try:
                for chunk in _chunks(payload, min(request.offset, len(payload))):
                    yield chunk
                    sent_bytes += chunk.ByteSize() + MESSAGE_HEADER_BYTES
                    leash.lengthen(sent_bytes)
                    failpoints.reach("mid-stream", request.round)
            finally:  # also when the other end has gone: what was sent was sent
                leash.drop()
                if sent_bytes:
                    self._ledger.transfer(
                        round_number=request.round, peer=peer, direction="sent", kind=kind,
                        num_bytes=sent_bytes, seconds=time.monotonic() - started_s,
                    )  # fmt: skip

    def _look_up(self, digest: str) -> bytes | None:
        payload = self._store.get(digest)
        return self._lender.get(digest) if payload is None and self._lender is not None else payload

    async def Put(
        self,
        request_iterator: AsyncIterator[pb.PutRequest],
        context: grpc.aio.ServicerContext[pb.PutRequest, pb.PutReply],
    ) -> pb.PutReply:
        """Keeps a payload for others to get."""
        if self._uploads is None:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, 'this peer relays nothing (exchange.route = "direct")'
            )
        try:
            async with asyncio.timeout(self._pace.grace_s):
                first = await anext(request_iterator)
            parcel = _announced(first.header)
            require_name(context, parcel.replica)
            self._ledger.control(peer=parcel.replica, direction="received", num_bytes=first.ByteSize())
            with (
                self._uploads.admitted(parcel.replica, parcel.round, parcel.digest, parcel.num_bytes),
                self._store.incoming() as incoming,
            ):
                await self._receive(parcel, request_iterator, incoming)
        except (wire.WireError, StopAsyncIteration, TimeoutError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error) or "an empty stream")
        except AccessError as error:
            await refuse(context, error)
        reply = pb.PutReply()
        self._ledger.control(peer=parcel.replica, direction="sent", num_bytes=reply.ByteSize())
        return reply

    async def _receive(self, parcel: Parcel, requests: AsyncIterator[pb.PutRequest], incoming: Incoming) -> None:
        """Writes down what comes of an announced payload; WrongDigest or TooSlow when it is not that, in time."""
        loop = asyncio.get_running_loop()
        started_s, received_bytes = loop.time(), 0
        try:
            async with asyncio.timeout(self._pace.grace_s) as patience:
                async for request in requests:
                    incoming.write(request.chunk.data)
                    received_bytes += request.ByteSize() + MESSAGE_HEADER_BYTES
                    if incoming.num_bytes > parcel.num_bytes:
                        break
                    patience.reschedule(self._pace.next_by_s(started_s, loop.time(), incoming.num_bytes))
        except TimeoutError:
            raise TooSlow(f"{incoming.num_bytes} of {parcel.num_bytes} bytes came before it stood still") from None
        finally:
            if received_bytes:
                self._ledger.transfer(
                    round_number=parcel.round, peer=parcel.replica, direction="received", kind=parcel.kind,
                    num_bytes=received_bytes, seconds=loop.time() - started_s,
                )  # fmt: skip
        if (incoming.num_bytes, incoming.digest) != (parcel.num_bytes, parcel.digest):
            raise WrongDigest(f"payload {parcel.digest[:12]} is not what its digest says")


class _Lately:
    """Small payloads as they were read and checked: all others of a round ask for the same within milliseconds."""

    def __init__(self) -> None:
        self._payloads: dict[str, bytes] = {}
        self._num_bytes = 0

    def get(self, digest: str) -> bytes | None:
        """The payload, when it is kept."""
        return self._payloads.get(digest)

    def keep(self, digest: str, payload: bytes) -> None:
        """Keeps it, and lets the oldest go."""
        if digest in self._payloads or len(payload) > _LARGEST_LATELY_BYTES:
            return
        self._payloads[digest] = payload
        self._num_bytes += len(payload)
        while self._num_bytes > _LATELY_BYTES or len(self._payloads) > _MOST_LATELY:
            self._num_bytes -= len(self._payloads.pop(next(iter(self._payloads))))


class _Leash:
    """Ends the call that it is made in when its reader takes the bytes too slowly."""

    def __init__(self, pace: Pace, context: grpc.aio.ServicerContext[pb.GetRequest, pb.Chunk]) -> None:
        self._pace = pace
        self._context = context
        self._ending: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._call = asyncio.current_task()
        self._started_s = self._loop.time()
        self._timer = self._loop.call_later(pace.grace_s, self._pull)

    def lengthen(self, num_bytes: int) -> None:
        """Waits on, now that `num_bytes` were taken."""
        self._timer.cancel()
        next_by_s = self._pace.next_by_s(self._started_s, self._loop.time(), num_bytes)
        self._timer = self._loop.call_at(next_by_s, self._pull)

    def drop(self) -> None:
        """Waits no longer."""
        self._timer.cancel()

    def _pull(self) -> None:
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        """Says why, which the reader may keep us from for as long as it likes; the call does not wait for that."""
        if self._call is not None:
            self._loop.call_soon(self._call.cancel)  # when the status is on its way: a cancelled call sends none
        with suppress(grpc.aio.AbortError):
            await refuse(self._context, TooSlow("the payload was taken too slowly; ask again for the rest"))


def _announced(header: pb.PutHeader) -> Parcel:
    if header.num_bytes > MOST_PAYLOAD_BYTES:
        raise wire.WireError(f"put.num_bytes = {header.num_bytes} is more than {MOST_PAYLOAD_BYTES}")
    return Parcel(
        digest=wire.digest(header.digest, "put.digest"),
        num_bytes=header.num_bytes,
        round=header.round,
        replica=wire.name(header.replica, "put.replica"),
        kind=_kind(header.kind),
    )


def _kind(kind: str) -> Kind:
    if kind not in _KINDS:
        raise wire.WireError(f"kind = {kind[:40]!r} is none of {', '.join(_KINDS)}")
    return _KINDS[kind]


class PayloadClient:
    """The calls of one member to one peer's payload service."""

    def __init__(self, channel: grpc.aio.Channel, peer: str, ledger: Ledger) -> None:
        self._stub = pb_grpc.PayloadsStub(channel)
        self._peer = peer
        self._ledger = ledger

    async def get(self, parcel: Parcel, received: bytearray, deadline_s: float) -> None:
        """Appends what is missing of the payload to `received`, which keeps what came if the stream breaks.

        Raises grpc.aio.AioRpcError, or WireError when more comes than was announced or the digest is wrong.
        """
        request = pb.GetRequest(
            digest=bytes.fromhex(parcel.digest),
            offset=len(received),
            replica=parcel.replica,
            round=parcel.round,
            kind=parcel.kind,
        )
        self._ledger.control(peer=self._peer, direction="sent", num_bytes=request.ByteSize())
        started_s, received_bytes = time.monotonic(), 0
        try:
            async for chunk in self._stub.Get(request, timeout=deadline_s):
                received_bytes += chunk.ByteSize() + MESSAGE_HEADER_BYTES
                received += chunk.data
                if len(received) > parcel.num_bytes:
                    received.clear()
                    raise wire.WireError(f"{self._peer} sends more than the announced {parcel.num_bytes} bytes")
        finally:
            if received_bytes:
                self._ledger.transfer(
                    round_number=parcel.round, peer=self._peer, direction="received", kind=parcel.kind,
                    num_bytes=received_bytes, seconds=time.monotonic() - started_s, fragment=parcel.fragment,
                )  # fmt: skip
        if digest_of(bytes(received)) != parcel.digest:
            received.clear()
            raise wire.WireError(f"{self._peer} sent other bytes than {parcel.digest[:12]}")

    async def put(self, parcel: Parcel, payload: bytes, deadline_s: float) -> None:
        """Stores `payload` at the peer; grpc.aio.AioRpcError when it does not arrive."""
        started_s, sent_bytes = time.monotonic(), 0
        header = pb.PutHeader(
            digest=bytes.fromhex(parcel.digest),
            num_bytes=len(payload),
            replica=parcel.replica,
            round=parcel.round,
            kind=parcel.kind,
        )

        async def requests() -> AsyncIterator[pb.PutRequest]:
            nonlocal sent_bytes
            yield pb.PutRequest(header=header)
            for chunk in _chunks(payload):
                request = pb.PutRequest(chunk=chunk)
                yield request
                sent_bytes += request.ByteSize() + MESSAGE_HEADER_BYTES

        self._ledger.control(peer=self._peer, direction="sent", num_bytes=pb.PutRequest(header=header).ByteSize())
        try:
            reply = await self._stub.Put(requests(), timeout=deadline_s)
            self._ledger.control(peer=self._peer, direction="received", num_bytes=reply.ByteSize())
        finally:
            if sent_bytes:
                self._ledger.transfer(
                    round_number=parcel.round, peer=self._peer, direction="sent", kind=parcel.kind,
                    num_bytes=sent_bytes, seconds=time.monotonic() - started_s, fragment=parcel.fragment,
                )  # fmt: skip
