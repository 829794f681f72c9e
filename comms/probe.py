"""What one machine can find out about the way to a coordinator, and back: blocking, bounded, over our own channel.

reach        TCP, then TLS or plain text, then the run's word
clock        offset = ((t1 - t0) + (t1 - t3)) / 2 of the fastest of some round trips       (t1: the peer's clock)
download, upload    bytes over the seconds between the first chunk and the last
dialled_back        the coordinator dials us
"""

from __future__ import annotations

import secrets
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from comms.address import host_and_port
from comms.agreement import COORDINATOR
from comms.channel import listen, new_server, open_blocking_channel
from comms.errors import CommsError, Unreachable
from comms.ledger import MESSAGE_HEADER_BYTES
from comms.loop_thread import LoopThread
from comms.probe_service import CHUNK_BYTES, DIAL_DEADLINE_S, MOST_BYTES, MOST_S, NONCE_BYTES
from comms.security import Security
from comms.wire import text
from protos import probe_pb2 as pb
from protos import probe_pb2_grpc as pb_grpc

CONNECT_DEADLINE_S = 5.0
_ROUND_TRIPS = 9
_CALL_DEADLINE_S = MOST_S + 5.0


@dataclass(frozen=True)
class Clock:
    """How a peer's clock stands, and how far away it is."""

    ahead_s: float
    """Of this machine's; known to half a round trip."""
    round_trip_s: float
    """Of the fastest."""
    median_round_trip_s: float


@dataclass(frozen=True)
class Flow:
    """What went one way, and how fast."""

    num_bytes: int
    seconds: float

    @property
    def bits_per_second(self) -> float:
        """The rate; infinite when it was too short to be timed."""
        return 8 * self.num_bytes / self.seconds if self.seconds > 0 else float("inf")


def knock(address: str) -> None:
    """Opens a TCP connection to host:port and closes it. Unreachable says what stands in its way."""
    host, port = host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=CONNECT_DEADLINE_S).close()
    except ConnectionRefusedError:
        raise Unreachable(f"{address} refuses: the machine is there, and nothing listens at that port") from None
    except TimeoutError:
        raise Unreachable(
            f"{address} does not answer within {CONNECT_DEADLINE_S:g} s: a firewall drops it, or the machine is off"
        ) from None
    except OSError as error:
        raise Unreachable(f"{address} can't be reached: {error.strerror or error}") from None


@contextmanager
def connection(address: str, peer: str, security: Security) -> Iterator[grpc.Channel]:
    """A channel to a member that has shaken hands. Unreachable when it does not; InsecureAddress, CertificateError."""
    with open_blocking_channel(address, peer, security) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_DEADLINE_S)
        except grpc.FutureTimeoutError:
            raise Unreachable(f"{address} is there, and does not shake hands as {peer} of this run") from None
        yield channel


def read_clock(channel: grpc.Channel) -> Clock:
    """The peer's clock beside ours. CommsError when it is no coordinator of this version."""
    stub, trips = pb_grpc.ProbesStub(channel), list[tuple[float, float]]()
    with _told():
        for _ in range(_ROUND_TRIPS):
            sent_s, started_s = time.time(), time.perf_counter()
            there_s = stub.ReadClock(pb.ReadClockRequest(), timeout=CONNECT_DEADLINE_S).now_s
            trip_s = time.perf_counter() - started_s
            trips.append((trip_s, there_s - sent_s - trip_s / 2))
    fastest_s, ahead_s = min(trips)
    return Clock(ahead_s, fastest_s, statistics.median(trip_s for trip_s, _ in trips))


def download(channel: grpc.Channel, num_bytes: int = MOST_BYTES) -> Flow:
    """How fast bytes come from there. CommsError when it won't."""
    started_s, ended_s, taken_bytes = 0.0, 0.0, -1
    with _told():
        request = pb.DownloadRequest(num_bytes=num_bytes)
        for chunk in pb_grpc.ProbesStub(channel).Download(request, timeout=_CALL_DEADLINE_S):
            ended_s = time.perf_counter()
            if taken_bytes < 0:  # what came before it was the call's, not the link's
                started_s, taken_bytes = ended_s, 0
            else:
                taken_bytes += chunk.ByteSize() + MESSAGE_HEADER_BYTES
    return Flow(max(0, taken_bytes), ended_s - started_s)


def upload(channel: grpc.Channel, num_bytes: int = MOST_BYTES) -> Flow:
    """How fast bytes go there, by the peer's watch. CommsError when it won't."""
    give_up_s = time.monotonic() + MOST_S - 1.0  # so that it ends by itself, and what is on the way arrives

    def chunks() -> Iterator[pb.ProbeChunk]:
        chunk = pb.ProbeChunk(data=bytes(CHUNK_BYTES))
        for _ in range(-(-num_bytes // CHUNK_BYTES)):
            if time.monotonic() >= give_up_s:
                return
            yield chunk

    with _told():
        reply = pb_grpc.ProbesStub(channel).Upload(chunks(), timeout=_CALL_DEADLINE_S)
        return Flow(reply.num_bytes, reply.seconds)


@dataclass(frozen=True)
class WayBack:
    """Whether the coordinator could dial this machine."""

    reached: bool
    address: str
    """What it dialled: this machine as it is seen from there."""
    why: str


class _Answers(pb_grpc.AnswersServicer):
    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce

    async def Answer(
        self, request: pb.AnswerRequest, context: grpc.aio.ServicerContext[pb.AnswerRequest, pb.AnswerReply]
    ) -> pb.AnswerReply:
        """Shows that we are the ones who asked to be dialled."""
        del request, context
        return pb.AnswerReply(nonce=self._nonce)


def dialled_back(channel: grpc.Channel, listen_at: str, security: Security) -> WayBack:
    """Listens at host:port as a replica would, and asks the coordinator to dial that. CommsError when it won't."""
    loop, nonce = LoopThread("answers"), secrets.token_bytes(NONCE_BYTES)
    server = None
    try:
        server, bound = loop.wait(_answering(nonce, listen_at, security))
        request = pb.DialBackRequest(port=host_and_port(bound)[1], nonce=nonce)
        with _told():
            reply = pb_grpc.ProbesStub(channel).DialBack(request, timeout=2 * DIAL_DEADLINE_S)
        return WayBack(reply.reached, text(reply.address), text(reply.why))
    finally:
        if server is not None:
            loop.wait(server.stop(None))
        loop.stop()


async def _answering(nonce: bytes, listen_at: str, security: Security) -> tuple[grpc.aio.Server, str]:
    server = new_server()
    pb_grpc.add_AnswersServicer_to_server(_Answers(nonce), server)
    bound = listen(server, listen_at, security)
    await server.start()
    return server, bound


@contextmanager
def _told() -> Iterator[None]:
    """A CommsError for what gRPC says."""
    try:
        yield
    except grpc.RpcError as error:
        code = error.code() if isinstance(error, grpc.Call) else None
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise CommsError(f"the {COORDINATOR} there is of a version that answers no doctor; update it") from None
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        raise CommsError(text(str(details))) from None
