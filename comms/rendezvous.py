"""The key-value store at rank 0 in which the ranks of a replica find each other, and its callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import grpc

from comms.caller import refuse
from comms.errors import AccessError, RankLost, TooLarge
from comms.ledger import Ledger
from comms.place import DEADLINE_KEY, Place
from comms.wire import WireError
from protos import rendezvous_pb2 as pb
from protos import rendezvous_pb2_grpc as pb_grpc

MOST_KEYS = 10_000
MOST_KEY = 1_000
MOST_VALUE_BYTES = 2**20
MOST_WAIT_S = 60.0
"""Longer waits are asked for again and again."""
_MOST_AMOUNT = 2**62
_Request = (
    pb.SetKeyRequest | pb.ReadKeysRequest | pb.AddToKeyRequest | pb.DeleteKeyRequest | pb.CountKeysRequest
)  # fmt: skip
_Context = grpc.aio.ServicerContext[Any, Any]
_Reply = TypeVar("_Reply", pb.StoredValue, pb.StoredValues, pb.KeySum, pb.KeyDeleted, pb.KeyCount)


class KeyNotThere(RankLost):
    """A key was not set in time."""


class RendezvousService(pb_grpc.RendezvousServicer):
    """Keeps keys for the ranks of one group, in memory."""

    def __init__(self, place: Place, ledger: Ledger) -> None:
        self._place = place
        self._ledger = ledger
        self._values: dict[str, bytes] = {}
        self._changed = asyncio.Condition()

    async def SetKey(self, request: pb.SetKeyRequest, context: _Context) -> pb.StoredValue:
        """Sets a key, or compares it first."""
        await self._admit(request, context, [request.key], request.value)
        present = self._values.get(request.key)
        expected = request.expected if request.HasField("expected") else None
        if expected is not None and (present or b"") != expected:
            return self._counted(request, pb.StoredValue(value=expected if present is None else present))
        await self._set(request.key, request.value)
        return self._counted(request, pb.StoredValue(value=request.value))

    async def ReadKeys(self, request: pb.ReadKeysRequest, context: _Context) -> pb.StoredValues:
        """Waits for keys."""
        keys = list(request.keys)
        await self._admit(request, context, keys)
        try:
            async with asyncio.timeout(min(max(0.0, request.wait_s), MOST_WAIT_S)), self._changed:
                await self._changed.wait_for(lambda: all(key in self._values for key in keys))
        except TimeoutError:
            pass
        if missing := [key for key in keys if key not in self._values]:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"nobody has set {missing[0]!r}")
        values = [self._values[key] for key in keys]
        if sum(map(len, values)) > 2 * MOST_VALUE_BYTES:
            await refuse(context, TooLarge("the values are too large for one reply; ask for fewer keys"))
        return self._counted(request, pb.StoredValues(values=values))

    async def AddToKey(self, request: pb.AddToKeyRequest, context: _Context) -> pb.KeySum:
        """Counts."""
        await self._admit(request, context, [request.key])
        try:
            total = int(self._values.get(request.key, b"0")) + request.amount
        except ValueError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.key!r} holds no whole number")
        if abs(total) > _MOST_AMOUNT:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.key!r} would become too large")
        await self._set(request.key, str(total).encode())
        return self._counted(request, pb.KeySum(sum=total))

    async def DeleteKey(self, request: pb.DeleteKeyRequest, context: _Context) -> pb.KeyDeleted:
        """Forgets a key."""
        await self._admit(request, context, [request.key])
        return self._counted(request, pb.KeyDeleted(was_there=self._values.pop(request.key, None) is not None))

    async def CountKeys(self, request: pb.CountKeysRequest, context: _Context) -> pb.KeyCount:
        """How many keys there are."""
        await self._admit(request, context, [])
        return self._counted(request, pb.KeyCount(count=len(self._values)))

    async def _set(self, key: str, value: bytes) -> None:
        async with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    async def _admit(self, request: _Request, context: _Context, keys: Sequence[str], value: bytes = b"") -> None:
        """Ends the call of somebody who is no rank of this group, or wants to store too much."""
        caller = request.caller
        try:
            self._place.admit(context, caller.group, caller.generation, caller.rank)
            if len(keys) > MOST_KEYS or any(len(key) > MOST_KEY for key in keys):
                raise TooLarge(f"at most {MOST_KEYS} keys of at most {MOST_KEY} characters are taken")
            if len(value) > MOST_VALUE_BYTES or len(self._values.keys() | set(keys)) > MOST_KEYS:
                raise TooLarge(f"at most {MOST_KEYS} values of at most {MOST_VALUE_BYTES} bytes are taken")
        except AccessError as error:
            await refuse(context, error)
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        peer = self._place.peer(caller.rank)
        self._ledger.control(peer=peer, direction="received", num_bytes=request.ByteSize())

    def _counted(self, request: _Request, reply: _Reply) -> _Reply:
        peer = self._place.peer(request.caller.rank)
        self._ledger.control(peer=peer, direction="sent", num_bytes=reply.ByteSize())
        return reply


class RendezvousClient:
    """One rank's calls to the store; on the event loop that owns the channel. Each waits at most `deadline_s`.

    RankLost names rank 0 when it does not answer, KeyNotThere the rank that waits when a key is missing for too long.
    """

    def __init__(self, channel: grpc.aio.Channel, place: Place, ledger: Ledger, address: str) -> None:
        self._stub = pb_grpc.RendezvousStub(channel)
        self._place = place
        self._ledger = ledger
        self._address = address
        self._caller = pb.RankCaller(group=place.group, generation=place.generation, rank=place.rank)

    async def set(self, key: str, value: bytes, deadline_s: float, expected: bytes | None = None) -> bytes:
        """Sets a key, if it is still as `expected`; the value that it has then."""
        request = pb.SetKeyRequest(caller=self._caller, key=key, value=value, expected=expected)
        reply: pb.StoredValue = await self._ask(self._stub.SetKey, request, deadline_s)
        return reply.value

    async def read(self, keys: Sequence[str], deadline_s: float) -> list[bytes]:
        """The values of `keys`, when all of them are there."""
        until_s = time.monotonic() + deadline_s
        while True:
            remaining_s = max(0.0, until_s - time.monotonic())
            request = pb.ReadKeysRequest(caller=self._caller, keys=keys, wait_s=min(remaining_s, MOST_WAIT_S))
            try:
                reply: pb.StoredValues = await self._ask(self._stub.ReadKeys, request, max(remaining_s, 1.0) + 5.0)
                return list(reply.values)
            except KeyNotThere:
                if time.monotonic() >= until_s:
                    raise

    async def add(self, key: str, amount: int, deadline_s: float) -> int:
        """Adds to a key; its new value."""
        request = pb.AddToKeyRequest(caller=self._caller, key=key, amount=amount)
        reply: pb.KeySum = await self._ask(self._stub.AddToKey, request, deadline_s)
        return reply.sum

    async def delete(self, key: str, deadline_s: float) -> bool:
        """Forgets a key; whether it was there."""
        request = pb.DeleteKeyRequest(caller=self._caller, key=key)
        reply: pb.KeyDeleted = await self._ask(self._stub.DeleteKey, request, deadline_s)
        return reply.was_there

    async def count(self, deadline_s: float) -> int:
        """How many keys there are."""
        reply: pb.KeyCount = await self._ask(self._stub.CountKeys, pb.CountKeysRequest(caller=self._caller), deadline_s)
        return reply.count

    async def _ask(self, method: Any, request: _Request, deadline_s: float) -> Any:
        """One call. Waits for the connection, and is not repeated: adding twice would be wrong."""
        peer = self._place.peer(0)
        self._ledger.control(peer=peer, direction="sent", num_bytes=request.ByteSize())
        try:
            reply = await method(request, timeout=deadline_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise KeyNotThere(
                    f"{self._place.peer(self._place.rank)} waits in vain (rendezvous: {error.details()}). "
                    f"Are all ranks up? Raise {DEADLINE_KEY} if they are only slow."
                ) from None
            raise RankLost(
                f"{peer} at {self._address} does not answer within {deadline_s:g} s (rendezvous: {error.details()}). "
                f"Is it up and reachable? Raise {DEADLINE_KEY} if it is only slow."
            ) from None
        self._ledger.control(peer=peer, direction="received", num_bytes=reply.ByteSize())
        return reply
