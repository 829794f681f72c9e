"""A replica's conversation with the coordinator: one for the whole run, over as many streams as it takes.

A stream may break at any moment, and whoever wrote to it doesn't learn what of that was heard. Nothing that was said is
lost all the same, because every stream begins with an opening, and the round machine (comms/rounds.py) takes twice
what may come twice:

    Join         who we are, and the last round that we applied
    Applied      the last: with a Join before it that says the same, it brings its figures and changes nothing else
    Report       the last, until its round is applied; a second one of a round replaces the first, or comes too late
    Offer        the last: it replaces the one before
    Leave        if it was said: nobody is a member twice

    Acknowledge  is not in it: who joins while a round is proposed is told the proposal anew, and acknowledges anew,
                 with what it has by then. A second one of the same attempt replaces the first
    Heartbeat    is not in it: the Join says as much

While there is nothing to say a heartbeat goes out. While nothing is heard for long the coordinator is asked whether it
still answers: a connection may live in the kernel and in gRPC of a process that does not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

import grpc

from comms import failpoints, wire
from comms.agreement import (
    COORDINATOR,
    Acknowledge,
    Applied,
    CoordinatorMessage,
    Finish,
    Heartbeat,
    Join,
    Leave,
    MemberMessage,
    Offer,
    Refusal,
    Report,
)
from comms.channel import GOODBYE_S
from comms.errors import CommsError, Refused, Unreachable
from comms.join_token import prove, read_token
from comms.peers import Peers
from comms.security import Tls
from protos import round_pb2 as pb
from protos import round_pb2_grpc

_RETRY_S = 0.25
_SLOWER, _LONGEST_PAUSE_S = 1.25, 5.0
"""Each further attempt to reach the coordinator waits so much longer: by a quarter of how long it has been gone."""
_POINTS: dict[type[MemberMessage], failpoints.Point] = {
    Acknowledge: "saying-acknowledge",
    Applied: "saying-applied",
}
_REPEATED: tuple[type[MemberMessage], ...] = (Applied, Report, Offer, Leave)
"""What an opening says after the Join, in this order."""
_Code = grpc.StatusCode
_Stream = grpc.aio.StreamStreamCall[pb.MemberMessage, pb.CoordinatorMessage]
_log = logging.getLogger(__name__)


class Conversation:
    """For the thread of one event loop alone."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._join: Join | None = None
        self._said = dict[type[MemberMessage], MemberMessage]()
        """The last of each kind."""
        self._outbox = asyncio.Queue[MemberMessage | None]()
        """What the present stream has yet to say; None: nothing more."""
        self._was_heard = False
        self._is_ending = False

    def say(self, message: MemberMessage) -> None:
        """Says something on the present stream, or as the next one opens."""
        self._said[type(message)] = message
        if isinstance(message, Applied) and self._join is not None:
            self._join = replace(self._join, applied_round=message.round, theta_digest=message.theta_digest)
        self._outbox.put_nowait(message)

    def end(self) -> None:
        """Hangs up after what was said last; there will be no further stream."""
        self._is_ending = True
        self._outbox.put_nowait(None)

    async def heard(self, join: Join) -> AsyncGenerator[CoordinatorMessage, None]:
        """Joins, and gives what the coordinator says until the run is over, or `end` was called.

        Refused when it does not let us in, Unreachable when it has not answered for outage_deadline_s.
        """
        self._join = join
        try:
            async with aclosing(self._heard()) as messages:
                async for message in messages:
                    yield message
        except CommsError:
            raise
        except Exception as error:
            raise CommsError(f"the conversation with the coordinator ended: {error!r}") from error

    # ---- from stream to stream ----

    async def _heard(self) -> AsyncGenerator[CoordinatorMessage, None]:
        absence = _Absence(self._peers)
        while not self._is_ending:
            was_there = False
            try:
                stream, was_there = await self._dial(absence)
                async with aclosing(self._attend(stream)) as messages:
                    async for message in messages:
                        yield message
                        if isinstance(message, Refusal | Finish):
                            return
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                absence.why = str(error.details())
                self._require_hope(error)
                was_there = was_there and error.code() is not _Code.UNAUTHENTICATED
            if self._is_ending:
                return
            if was_there:  # however long it had nothing to say: until now it was there
                absence.begin()
            await absence.pass_some()

    async def _dial(self, absence: _Absence) -> tuple[_Stream, bool]:
        """A stream, and whether it is connected. TimeoutError when the coordinator has been gone for too long."""
        async with asyncio.timeout_at(absence.until_s):
            channel = self._peers.channel_to(self._peers.coordinator)
            stream = round_pb2_grpc.RoundsStub(channel).Attend()
            await stream.wait_for_connection()
            return stream, channel.get_state() is grpc.ChannelConnectivity.READY

    def _require_hope(self, error: grpc.aio.AioRpcError) -> None:
        """Refused when a further stream would end as this one did."""
        _log.debug("conversation broke: %s", error.details())
        if error.code() is _Code.INVALID_ARGUMENT:
            raise Refused(f"the coordinator does not understand this replica: {error.details()}") from None
        # Once let in, a token may just be on its way to one of the two machines.
        is_not_believed = error.code() is _Code.UNAUTHENTICATED and not self._was_heard
        if error.code() is _Code.PERMISSION_DENIED or is_not_believed:
            raise Refused(f"the coordinator does not let this replica in: {error.details()}") from None

    # ---- one stream ----

    async def _attend(self, stream: _Stream) -> AsyncGenerator[CoordinatorMessage, None]:
        """What is heard over one stream, until it ends."""
        talker = asyncio.create_task(self._talk(stream))
        try:
            while isinstance(encoded := await self._next_heard(stream, talker), pb.CoordinatorMessage):
                self._peers.ledger.control(peer=COORDINATOR, direction="received", num_bytes=encoded.ByteSize())
                message = wire.coordinator_message_from_pb(encoded)
                self._was_heard = True
                if isinstance(message, Finish):
                    await self._hang_up(stream, talker)
                yield message
        finally:
            talker.cancel()
            stream.cancel()

    async def _hang_up(self, stream: _Stream, talker: asyncio.Task[None]) -> None:
        """Finishes what is being said, and waits until the coordinator has heard it and ends the stream."""
        self.end()
        with suppress(TimeoutError, grpc.aio.AioRpcError):
            async with asyncio.timeout(GOODBYE_S):
                await talker
                await stream.read()

    async def _next_heard(self, stream: _Stream, talker: asyncio.Task[None]) -> object:
        """What is read next, however long that takes. Raises what the talker failed with, and Unreachable when the
        coordinator is silent and does not answer.
        """
        half_s = self._peers.settings.outage_deadline_s / 2
        reading = asyncio.create_task(stream.read())  # not to be cancelled by a deadline: that would end the stream
        try:
            while not reading.done():
                working = {reading} if talker.done() else {reading, talker}
                done, _ = await asyncio.wait(working, timeout=half_s, return_when=asyncio.FIRST_COMPLETED)
                if talker in done:
                    talker.result()
                if not done:
                    await self._require_answer(half_s)
            return reading.result()
        finally:
            reading.cancel()

    async def _require_answer(self, within_s: float) -> None:
        try:
            await self._peers.status(within_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is _Code.DEADLINE_EXCEEDED:
                raise Unreachable(
                    f"the coordinator at {self._peers.coordinator.address} is connected, has said nothing for "
                    f"{2 * within_s:g} s and does not answer (waiting for its word). "
                    "Does it hang? Raise exchange.outage_deadline_s if it is only slow."
                ) from None

    async def _talk(self, stream: _Stream) -> None:
        """Says the opening, then what there is to say, and that we live."""
        outbox = self._outbox = asyncio.Queue()  # what an earlier stream had yet to say is in the opening
        if self._is_ending:
            outbox.put_nowait(None)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in self._opening():
                await self._say(stream, message)
            while (following := await self._next_to_say(outbox)) is not None:
                await self._say(stream, following)
            await stream.done_writing()

    def _opening(self) -> list[MemberMessage]:
        """Who we are, and what the coordinator may have missed."""
        if self._join is None:
            raise AssertionError("a conversation began before join")
        said = [self._said[kind] for kind in _REPEATED if kind in self._said]
        stands_at = self._join.applied_round
        return [self._join, *(one for one in said if not (isinstance(one, Report) and one.round <= stands_at))]

    async def _next_to_say(self, outbox: asyncio.Queue[MemberMessage | None]) -> MemberMessage | None:
        try:
            async with asyncio.timeout(self._peers.settings.heartbeat_s):
                return await outbox.get()
        except TimeoutError:
            return Heartbeat()

    async def _say(self, stream: _Stream, message: MemberMessage) -> None:
        encoded = self._proved(wire.member_message_to_pb(message))
        self._peers.ledger.control(peer=COORDINATOR, direction="sent", num_bytes=encoded.ByteSize())
        if isinstance(message, Acknowledge | Applied):
            failpoints.reach(_POINTS[type(message)], message.round)
        await stream.write(encoded)

    def _proved(self, encoded: pb.MemberMessage) -> pb.MemberMessage:
        """A Join with the proof that we know the run's token, as of now; as it is where there is none."""
        security = self._peers.settings.security
        if isinstance(security, Tls) and encoded.HasField("join"):
            join, token = encoded.join, read_token(security.token)
            join.proved_at_s = time.time()
            join.proof = prove(token, security.run, join.replica, join.incarnation, join.proved_at_s)
        return encoded


class _Absence:
    """How long the coordinator has been gone, and how seldom it is dialled by now."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._outage_s = peers.settings.outage_deadline_s
        self.until_s = self._loop.time() + self._outage_s
        self._pause_s = _RETRY_S
        self.why = "no answer"

    def begin(self) -> None:
        """It was there until now."""
        _log.warning("lost the coordinator; trying again for %g s", self._outage_s)
        self.until_s, self._pause_s = self._loop.time() + self._outage_s, _RETRY_S

    async def pass_some(self) -> None:
        """Looks where the coordinator is, and waits. Unreachable when it has been gone for too long."""
        await self._peers.look_for_coordinator(self._outage_s)
        remaining_s = self.until_s - self._loop.time()
        if remaining_s <= 0:
            raise Unreachable(
                f"the coordinator at {self._peers.coordinator.address} has not answered for {self._outage_s:g} s "
                f"({self.why}). Is it up? Raise exchange.outage_deadline_s."
            )
        await asyncio.sleep(min(remaining_s, self._pause_s * random.uniform(0.5, 1.5)))  # noqa: S311 - spreads reconnections
        self._pause_s = min(_SLOWER * self._pause_s, _LONGEST_PAUSE_S)
