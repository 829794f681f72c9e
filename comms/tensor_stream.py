"""The streams between the ranks of a replica: what is in an outbox goes to the inbox at the other end.

Each rank opens a stream to every other one and keeps it open. One that breaks is opened again for outage_deadline_s;
then the peer is lost, to whoever sends to it and to whoever waits for something from it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial

import grpc

from comms.caller import refuse
from comms.errors import AccessError, CommsError, RankLost
from comms.inbox import Inbox
from comms.ledger import MESSAGE_HEADER_BYTES, Kind, Ledger
from comms.outbox import Outbox, Outgoing
from comms.place import BUFFER_KEY, OUTAGE_KEY, Bounds, Place
from comms.tensor_header import TensorHeader, header_from_pb, header_to_pb
from comms.wire import WireError, text
from protos import tensors_pb2 as pb
from protos import tensors_pb2_grpc as pb_grpc

CHUNK_BYTES = 256 * 1024
_RETRY_S = 0.2
_FIRST_PART_S = 30.0
_FOR_GOOD = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""How a peer says that it will never take this stream."""
_Call = grpc.aio.StreamStreamCall[pb.TensorPart, pb.TensorReceipt]
_Context = grpc.aio.ServicerContext[pb.TensorPart, pb.TensorReceipt]
Fail = Callable[[int, RankLost], None]
"""Lets everything that waits for a rank fail."""
_USUAL_NUMBER = 1_000
"""Of a tensor; between 128 and 16,383 it takes two bytes."""
RECEIPT_BYTES = MESSAGE_HEADER_BYTES + pb.TensorReceipt(taken=[_USUAL_NUMBER]).ByteSize()
"""What the receiver says of a tensor that it has taken, as control."""
_log = logging.getLogger(__name__)


@lru_cache(maxsize=256)
def tensor_bytes(header: TensorHeader) -> int:
    """What a tensor comes to in a ledger: its header, its chunks, and what goes before each message."""
    outgoing = Outgoing(_USUAL_NUMBER, header, memoryview(bytes(header.num_bytes)))
    return sum(part.ByteSize() + MESSAGE_HEADER_BYTES for part in _parts(outgoing))


class TensorSender:
    """The stream to one other rank, as long as the group lives."""

    def __init__(
        self, place: Place, destination: int, outbox: Outbox, *, bounds: Bounds, ledger: Ledger, changed: asyncio.Event
    ) -> None:
        """`changed` is set whenever `outbox` may have more to say."""
        self._place = place
        self._destination = destination
        self._peer = place.peer(destination)
        self._outbox = outbox
        self._bounds = bounds
        self._ledger = ledger
        self._changed = changed
        self._farewell: pb.Farewell | None = None
        self._is_over = False
        self.connected = asyncio.Event()
        """Set when the peer has greeted once, or is lost."""
        self.failure: RankLost | None = None

    def leave(self, failure: str = "") -> None:
        """Says farewell when the outbox is empty, or at once when something failed; then `run` ends."""
        self._farewell = pb.Farewell(failure=text(failure))
        self._changed.set()

    @property
    def _has_failed(self) -> bool:
        """Whether what is still to be sent does not matter any more."""
        return self._farewell is not None and bool(self._farewell.failure)

    async def run(self, channel: Callable[[], grpc.aio.Channel], fail: Fail) -> None:
        """Sends until farewell was said or the peer is lost; never raises but when it is cancelled."""
        try:
            await self._run(channel)
        except Exception as error:  # noqa: BLE001 - whatever it was, who waits for this rank must hear of it
            if not isinstance(error, CommsError):
                _log.exception("the stream to %s ended", self._peer)
            self.failure = RankLost(str(error) or repr(error))
            fail(self._destination, self.failure)
        finally:
            self.connected.set()

    async def _run(self, channel: Callable[[], grpc.aio.Channel]) -> None:
        loop, why = asyncio.get_running_loop(), "no answer"
        broken_s = loop.time()
        while loop.time() - broken_s < self._bounds.outage_deadline_s:
            call: _Call = pb_grpc.TensorsStub(channel()).Deliver()
            greeted = False
            try:
                await self._begin(call, broken_s + self._bounds.outage_deadline_s - loop.time())
                greeted = True
                self.connected.set()
                await self._converse(call)
            except grpc.aio.AioRpcError as error:
                why = str(error.details())
                if error.code() in _FOR_GOOD:
                    raise RankLost(f"{self._peer} does not take what is sent to it: {why}") from None
            except (TimeoutError, ConnectionAbortedError, asyncio.InvalidStateError) as error:
                why = str(error) or "no greeting"
            else:
                return
            finally:
                call.cancel()
            if greeted:
                broken_s = loop.time()
                _log.warning("lost %s (%s); trying again for %g s", self._peer, why, self._bounds.outage_deadline_s)
            await asyncio.sleep(_RETRY_S)
        raise RankLost(
            f"{self._peer} has not been reached for {self._bounds.outage_deadline_s:g} s (send: {why}). "
            f"Is it up? Raise {OUTAGE_KEY} if its link is only shaky."
        )

    async def _begin(self, call: _Call, patience_s: float) -> None:
        opening = pb.Opening(
            group=self._place.group, generation=self._place.generation, source=self._place.rank,
            destination=self._destination, ranks=self._place.ranks, buffer_bytes=self._bounds.buffer_bytes,
        )  # fmt: skip
        part = pb.TensorPart(opening=opening)
        async with asyncio.timeout(max(0.0, patience_s)):
            await call.write(part)
            self._ledger.control(peer=self._peer, direction="sent", num_bytes=part.ByteSize())
            first = await _read(call)
        if not isinstance(first, pb.TensorReceipt):
            raise RankLost(f"{self._peer} has left the group")
        self._ledger.control(peer=self._peer, direction="received", num_bytes=first.ByteSize())
        greeting = first.greeting
        self._outbox.greeted(greeting.taken_below, greeting.taken, greeting.arrived)

    async def _converse(self, call: _Call) -> None:
        """Sends and hears until all was said. AioRpcError when the stream breaks, RankLost when the peer ends it."""
        self._is_over = False
        both = [asyncio.create_task(self._write(call)), asyncio.create_task(self._hear(call))]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _hear(self, call: _Call) -> None:
        """Takes receipts until the stream ends."""
        while isinstance(receipt := await _read(call), pb.TensorReceipt):
            self._ledger.control(peer=self._peer, direction="received", num_bytes=receipt.ByteSize())
            self._outbox.wanted(receipt.wanted)
            self._outbox.taken(receipt.taken)
        self._is_over = True
        self._changed.set()
        if self._farewell is None or not (self._outbox.is_empty or self._has_failed):
            raise RankLost(f"{self._peer} has left the group")

    async def _write(self, call: _Call) -> None:
        """Says what there is to say, and farewell at the end. Why a stream broke, `_hear` finds out."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while not self._is_over:
                self._changed.clear()
                while not self._has_failed and (outgoing := self._outbox.next()) is not None:
                    await self._say(call, outgoing)
                if self._farewell is not None and (self._outbox.is_empty or self._has_failed):
                    part = pb.TensorPart(farewell=self._farewell)
                    self._ledger.control(peer=self._peer, direction="sent", num_bytes=part.ByteSize())
                    await call.write(part)
                    await call.done_writing()
                    return
                await self._changed.wait()

    async def _say(self, call: _Call, outgoing: Outgoing) -> None:
        if outgoing.said == "announced":
            part = header_to_pb(outgoing.header, outgoing.sequence, announced=True)
            self._ledger.control(peer=self._peer, direction="sent", num_bytes=part.ByteSize())
            await call.write(part)
            return
        for part in _parts(outgoing):
            started_s = time.monotonic()
            await call.write(part)
            self._ledger.tally(
                peer=self._peer, direction="sent", kind=outgoing.header.kind,
                num_bytes=part.ByteSize() + MESSAGE_HEADER_BYTES, seconds=time.monotonic() - started_s,
            )  # fmt: skip


async def _read(call: _Call) -> object:
    """What comes next. gRPC cancels who reads from a call that was cancelled; to us that is a broken stream."""
    try:
        return await call.read()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # it is us who are cancelled
        raise ConnectionAbortedError("the call was cancelled") from None


def _parts(outgoing: Outgoing) -> Iterator[pb.TensorPart]:
    """A tensor as messages: its header with the first chunk, and the others."""
    content = outgoing.content
    yield header_to_pb(outgoing.header, outgoing.sequence, data=bytes(content[:CHUNK_BYTES]))
    for begin in range(CHUNK_BYTES, len(content), CHUNK_BYTES):
        yield pb.TensorPart(more=bytes(content[begin : begin + CHUNK_BYTES]))


class _Stream:
    """One stream that comes in."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.ended = False
        self.said_farewell = False
        self.kind: Kind = "control"
        self.heard_s = 0.0
        self.problem = ""
        self.code = grpc.StatusCode.INVALID_ARGUMENT

    def end(self, problem: str = "", code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> None:
        """Lets it end when what is to be told was told, or with a problem."""
        if not self.ended:
            self.ended, self.problem, self.code = True, problem, code
        self.changed.set()


class TensorService(pb_grpc.TensorsServicer):
    """Takes what other ranks send, each into its inbox."""

    def __init__(self, place: Place, inboxes: Mapping[int, Inbox], bounds: Bounds, ledger: Ledger, fail: Fail) -> None:
        self._place = place
        self._inboxes = inboxes
        self._bounds = bounds
        self._ledger = ledger
        self._fail = fail
        self._streams: dict[int, _Stream] = {}
        self._losing: dict[int, asyncio.TimerHandle] = {}
        self._is_ending = False

    def notice(self, source: int) -> None:
        """Looks whether an inbox has something to tell its source; on the loop's thread."""
        if source in self._streams:
            self._streams[source].changed.set()

    def end(self) -> None:
        """Ends all streams, when the last has been said on them; on the loop's thread."""
        self._is_ending = True
        for stream in self._streams.values():
            stream.end()
        for timer in self._losing.values():
            timer.cancel()

    async def Deliver(
        self, request_iterator: AsyncIterator[pb.TensorPart], context: _Context
    ) -> AsyncIterator[pb.TensorReceipt]:
        """All that one rank sends; a later stream of the same rank ends this one."""
        try:
            async with asyncio.timeout(_FIRST_PART_S):
                first = await anext(request_iterator)
            source = self._admitted(first.opening, context)
        except (WireError, StopAsyncIteration, TimeoutError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error) or "no opening came")
        except AccessError as error:
            _log.warning("%s may not send here: %s", context.peer(), error)
            await refuse(context, error)
        self._ledger.control(peer=self._place.peer(source), direction="received", num_bytes=first.ByteSize())
        stream = self._replace(source)
        greeting = self._inboxes[source].new_stream()
        yield self._counted(source, _greeting_to_pb(greeting.taken_below, greeting.taken, greeting.arrived))
        reader = asyncio.create_task(self._read(source, stream, request_iterator))
        try:
            while True:
                stream.changed.clear()
                if self._streams.get(source) is stream:
                    taken, wanted = self._inboxes[source].notes()
                    if taken or wanted:
                        yield self._counted(source, pb.TensorReceipt(taken=taken, wanted=wanted))
                if stream.ended:
                    break
                await stream.changed.wait()
            if stream.problem:
                await context.abort(stream.code, stream.problem)
        finally:
            reader.cancel()
            if self._streams.get(source) is stream:
                del self._streams[source]
                if not (stream.said_farewell or stream.problem or self._is_ending):
                    self._expect_back(source)

    def _admitted(self, opening: pb.Opening, context: _Context) -> int:
        """The rank that opens a stream, if it may."""
        self._place.admit(context, opening.group, opening.generation, opening.source)
        if opening.source not in self._inboxes or opening.destination != self._place.rank:
            raise WireError(f"a stream from rank {opening.source} to {opening.destination} came to {self._place.rank}")
        if (opening.ranks, opening.buffer_bytes) != (self._place.ranks, self._bounds.buffer_bytes):
            raise WireError(
                f"rank {opening.source} has {opening.ranks} ranks and {BUFFER_KEY} = {opening.buffer_bytes}, "
                f"rank {self._place.rank} has {self._place.ranks} and {self._bounds.buffer_bytes}: say the same at both"
            )
        return opening.source

    def _replace(self, source: int) -> _Stream:
        stream = _Stream()
        if (earlier := self._streams.get(source)) is not None:
            earlier.end("a newer stream of the same rank has come", grpc.StatusCode.ABORTED)
        if (timer := self._losing.pop(source, None)) is not None:
            timer.cancel()
        self._streams[source] = stream
        return stream

    def _expect_back(self, source: int) -> None:
        """Gives a rank whose stream broke its time to come back."""
        patience_s, peer = self._bounds.outage_deadline_s, self._place.peer(source)
        _log.warning("the stream from %s broke; it has %g s to come back", peer, patience_s)
        lost = RankLost(
            f"{peer} broke off and has not come back for {patience_s:g} s (receive). "
            f"Is it up? Raise {OUTAGE_KEY} if its link is only shaky."
        )
        loop = asyncio.get_running_loop()
        self._losing[source] = loop.call_later(patience_s, partial(self._fail, source, lost))

    async def _read(self, source: int, stream: _Stream, parts: AsyncIterator[pb.TensorPart]) -> None:
        """Puts what comes into the inbox until the stream ends."""
        try:
            async for part in parts:
                if self._streams.get(source) is not stream:
                    return
                self._take(source, stream, part)
        except WireError as error:
            problem = f"{self._place.peer(source)} breaks the rules of the wire: {error}"
            _log.warning(problem)
            stream.end(str(error))
            self._fail(source, RankLost(problem))
        except grpc.aio.UsageError:
            pass  # the call is over
        finally:
            stream.end()

    def _take(self, source: int, stream: _Stream, part: pb.TensorPart) -> None:
        inbox = self._inboxes[source]
        match part.WhichOneof("part"):
            case "tensor":
                header = header_from_pb(part.tensor, self._bounds.most_tensor_bytes)
                stream.kind = "control" if part.tensor.announced else header.kind
                stream.heard_s = time.monotonic()
                self._count(source, stream, part)
                inbox.begin(part.tensor.sequence, header, announced=part.tensor.announced)
                if part.tensor.data:
                    inbox.more(part.tensor.data)
            case "more":
                self._count(source, stream, part)
                inbox.more(part.more)
            case "farewell":
                stream.kind, stream.said_farewell = "control", True
                self._count(source, stream, part)
                self._hear_farewell(source, text(part.farewell.failure))
            case _:
                raise WireError("a part with nothing in it, or of a later version")

    def _count(self, source: int, stream: _Stream, part: pb.TensorPart) -> None:
        """Counts a part for the tensor that it belongs to."""
        now_s = time.monotonic()
        self._ledger.tally(
            peer=self._place.peer(source), direction="received", kind=stream.kind,
            num_bytes=part.ByteSize() + MESSAGE_HEADER_BYTES, seconds=now_s - stream.heard_s,
        )  # fmt: skip
        stream.heard_s = now_s

    def _hear_farewell(self, source: int, failure: str) -> None:
        peer = self._place.peer(source)
        self._inboxes[source].fail(RankLost(f"{peer} has left the group" + (f": {failure}" if failure else "")))
        if failure:
            self._fail(source, RankLost(f"{peer} has given up: {failure}"))

    def _counted(self, source: int, receipt: pb.TensorReceipt) -> pb.TensorReceipt:
        self._ledger.control(peer=self._place.peer(source), direction="sent", num_bytes=receipt.ByteSize())
        return receipt


def _greeting_to_pb(taken_below: int, taken: tuple[int, ...], arrived: tuple[int, ...]) -> pb.TensorReceipt:
    return pb.TensorReceipt(greeting=pb.Greeting(taken_below=taken_below, taken=taken, arrived=arrived))
