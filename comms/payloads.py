"""Payloads between peers: a service that hands them out and takes them in, and the two calls that use it.

A payload travels as a stream of chunks and is known by its SHA-256, so it does not matter from whom it comes, and a
stream that broke goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import grpc

from comms import wire
from comms.ledger import MESSAGE_HEADER_BYTES, Kind, Ledger
from comms.store import PayloadStore, digest_of
from protos import payload_pb2 as pb
from protos import payload_pb2_grpc as pb_grpc

CHUNK_BYTES = 256 * 1024
MOST_PAYLOAD_BYTES = 64 * 2**30
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
    """Hands out what a store holds, and takes in what is put into it when `accepts_puts`."""

    def __init__(self, store: PayloadStore, ledger: Ledger, *, accepts_puts: bool) -> None:
        self._store = store
        self._ledger = ledger
        self._accepts_puts = accepts_puts

    async def Get(
        self, request: pb.GetRequest, context: grpc.aio.ServicerContext[pb.GetRequest, pb.Chunk]
    ) -> AsyncIterator[pb.Chunk]:
        """Streams a payload from the offset that is asked for."""
        try:
            digest, peer = wire.digest(request.digest, "get.digest"), wire.name(request.replica, "get.replica")
            kind = _kind(request.kind)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self._ledger.control(peer=peer, direction="received", num_bytes=request.ByteSize())
        payload = await asyncio.to_thread(self._store.get, digest)
        if payload is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"payload {digest[:12]} is not here")
        started_s, sent_bytes = time.monotonic(), 0
        try:
            for chunk in _chunks(payload, min(request.offset, len(payload))):
                yield chunk
                sent_bytes += chunk.ByteSize() + MESSAGE_HEADER_BYTES
        finally:  # also when the other end has gone: what was sent was sent
            self._ledger.transfer(
                round_number=request.round, peer=peer, direction="sent", kind=kind,
                num_bytes=sent_bytes, seconds=time.monotonic() - started_s,
            )  # fmt: skip

    async def Put(
        self,
        request_iterator: AsyncIterator[pb.PutRequest],
        context: grpc.aio.ServicerContext[pb.PutRequest, pb.PutReply],
    ) -> pb.PutReply:
        """Keeps a payload for others to get."""
        if not self._accepts_puts:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, 'this peer relays nothing (exchange.route = "direct")'
            )
        try:
            header = (await anext(request_iterator)).header
            digest, peer = wire.digest(header.digest, "put.digest"), wire.name(header.replica, "put.replica")
            kind = _kind(header.kind)
            if header.num_bytes > MOST_PAYLOAD_BYTES:
                raise wire.WireError(f"put.num_bytes = {header.num_bytes} is more than {MOST_PAYLOAD_BYTES}")
        except (wire.WireError, StopAsyncIteration) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error) or "an empty stream")
        started_s, received_bytes, payload = time.monotonic(), 0, bytearray()
        async for request in request_iterator:
            payload += request.chunk.data
            received_bytes += request.ByteSize() + MESSAGE_HEADER_BYTES
            if len(payload) > header.num_bytes:
                break
        self._ledger.transfer(
            round_number=header.round, peer=peer, direction="received", kind=kind,
            num_bytes=received_bytes, seconds=time.monotonic() - started_s,
        )  # fmt: skip
        if len(payload) != header.num_bytes or digest_of(bytes(payload)) != digest:
            await context.abort(grpc.StatusCode.DATA_LOSS, f"payload {digest[:12]} is not what its digest says")
        await asyncio.to_thread(self._store.put, bytes(payload))
        return pb.PutReply()


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
            await self._stub.Put(requests(), timeout=deadline_s)
        finally:
            self._ledger.transfer(
                round_number=parcel.round, peer=self._peer, direction="sent", kind=parcel.kind,
                num_bytes=sent_bytes, seconds=time.monotonic() - started_s, fragment=parcel.fragment,
            )  # fmt: skip
