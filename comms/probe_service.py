"""What a coordinator tells a machine that asks whether it could take part: its clock, the link's rate, the way back.

None of it may be a tool against others:

    dial back     only the address from which the caller's connection comes, at an unprivileged port; whoever answers
                  must show the caller's certificate (TLS) and nonce, and the caller learns no more than that
    bytes         at most MOST_BYTES and MOST_S a measurement, one measurement at a time for the whole service
    how often     BURST of these at once for one caller, then one every EACH_S

Under TLS only members of the run reach this service at all; a caller is known by its certificate, else by its address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote

import grpc

from comms import wire
from comms.caller import caller_of, refuse
from comms.certificates import CertificateError
from comms.channel import InsecureAddress, open_channel
from comms.errors import AccessError, Busy, TooLarge
from comms.ledger import MESSAGE_HEADER_BYTES, Ledger
from comms.limits import Allowances
from comms.security import Security
from protos import probe_pb2 as pb
from protos import probe_pb2_grpc as pb_grpc

CHUNK_BYTES = 64 * 1024
MOST_BYTES = 16 * 2**20
MOST_S = 5.0
DIAL_DEADLINE_S = 5.0
BURST, EACH_S = 12, 10.0
NONCE_BYTES = 16
_LEAST_PORT = 1024
_PEER = re.compile(r"ipv[46]:(?P<host>.+):\d+")
_Context = grpc.aio.ServicerContext[Any, Any]


class ProbeService(pb_grpc.ProbesServicer):
    """Answers the questions of `dist-train doctor`."""

    def __init__(self, security: Security, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._security = security
        self._ledger = ledger
        self._clock = clock
        self._allowances = Allowances(BURST, 1 / EACH_S)
        self._measuring = False

    async def ReadClock(self, request: pb.ReadClockRequest, context: _Context) -> pb.ReadClockReply:
        """The clock here."""
        del request, context
        return pb.ReadClockReply(now_s=self._clock())

    async def Download(self, request: pb.DownloadRequest, context: _Context) -> AsyncIterator[pb.ProbeChunk]:
        """Sends zeros."""
        try:
            if request.num_bytes > MOST_BYTES:
                raise TooLarge(f"a measurement of {request.num_bytes} bytes; at most {MOST_BYTES} are sent")
            caller = self._begin(context)
        except AccessError as error:
            await refuse(context, error)
        leash = _leash(MOST_S + 1.0)
        try:
            give_up_s, chunk = time.monotonic() + MOST_S, pb.ProbeChunk(data=bytes(CHUNK_BYTES))
            for _ in range(-(-request.num_bytes // CHUNK_BYTES)):
                if time.monotonic() >= give_up_s:
                    return
                yield chunk
                self._ledger.control(peer=caller, direction="sent", num_bytes=chunk.ByteSize())
        finally:
            leash.cancel()
            self._measuring = False

    async def Upload(self, request_iterator: AsyncIterator[pb.ProbeChunk], context: _Context) -> pb.UploadReply:
        """Takes what comes, until it is enough."""
        try:
            caller = self._begin(context)
        except AccessError as error:
            await refuse(context, error)
        started_s, ended_s, num_bytes = 0.0, 0.0, -1
        try:
            async with asyncio.timeout(MOST_S):
                async for chunk in request_iterator:
                    self._ledger.control(peer=caller, direction="received", num_bytes=chunk.ByteSize())
                    ended_s = time.monotonic()
                    if num_bytes < 0:
                        started_s, num_bytes = ended_s, 0
                        continue
                    num_bytes += chunk.ByteSize() + MESSAGE_HEADER_BYTES
                    if num_bytes >= MOST_BYTES:
                        break
        except TimeoutError:
            pass
        finally:
            self._measuring = False
        return pb.UploadReply(num_bytes=max(0, num_bytes), seconds=ended_s - started_s)

    async def DialBack(self, request: pb.DialBackRequest, context: _Context) -> pb.DialBackReply:
        """Whether the caller can be dialled from here."""
        try:
            host = source_host(context.peer())
            if not _LEAST_PORT <= request.port <= 65_535 or len(request.nonce) != NONCE_BYTES:
                raise wire.WireError(f"port {request.port} with a nonce of {len(request.nonce)} bytes is not dialled")
            caller = self._begin(context)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except AccessError as error:
            await refuse(context, error)
        address = f"[{host}]:{request.port}" if ":" in host else f"{host}:{request.port}"
        try:
            why = await self._dial(address, caller, request.nonce)
        finally:
            self._measuring = False
        return pb.DialBackReply(reached=not why, address=address, why=why)

    async def _dial(self, address: str, caller: str, nonce: bytes) -> str:
        """Why nobody with that nonce answers there; empty when the caller does."""
        try:
            channel = open_channel(address, caller, self._security)
        except (InsecureAddress, CertificateError) as error:
            return wire.text(str(error))
        try:
            reply = await pb_grpc.AnswersStub(channel).Answer(pb.AnswerRequest(), timeout=DIAL_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            # No more than that: what another's service says to a stranger is not the caller's business.
            return f"nobody answered within {DIAL_DEADLINE_S:g} s ({error.code().name})"
        finally:
            await channel.close()
        return "" if reply.nonce == nonce else "somebody else answered"

    def _begin(self, context: _Context) -> str:
        """Takes the service's only turn for the caller, whose name it returns. Busy when it is taken, or too often."""
        caller = caller_of(context) or f"doctor-{source_host(context.peer())}"
        if self._measuring:
            raise Busy("another machine is being measured; try again in some seconds")
        if not self._allowances.take(caller, time.monotonic()):
            raise Busy(f"{caller} was measured often enough; try again in {EACH_S:g} s")
        self._measuring = True
        return caller


def _leash(most_s: float) -> asyncio.TimerHandle:
    """Ends the call that it is made in after so long: who doesn't read keeps it from looking at the clock."""
    call = asyncio.current_task()
    if call is None:
        raise AssertionError("a call is a task")
    return asyncio.get_running_loop().call_later(most_s, call.cancel)


def source_host(peer: str) -> str:
    """The address from which a call comes, of gRPC's words for it; WireError for what is none."""
    found = _PEER.fullmatch(unquote(peer))
    try:
        return str(ipaddress.ip_address(found["host"].strip("[]"))) if found is not None else _unknown(peer)
    except ValueError:
        return _unknown(peer)


def _unknown(peer: str) -> str:
    raise wire.WireError(f"a call from {wire.text(peer)!r} comes from no address")
