"""Those who have no business in a run, as tests need them: with any certificate or none, over real connections."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from comms.address import host_and_port
from comms.agreement import COORDINATOR
from comms.certificates import OPERATOR, TOKEN_FILE, issue
from comms.channel import open_channel
from comms.join_token import prove, read_token
from comms.run_state import RoundRules
from comms.security import Security, Tls
from comms.transport_settings import Route
from protos import payload_pb2 as payloads
from protos import payload_pb2_grpc, round_pb2_grpc
from protos import round_pb2 as pb
from tests.comms.members import CONFIG, CORPUS, CoordinatorThread, rules, theta_digest

RUN = "test"
MEMBERS = (COORDINATOR, OPERATOR, *"abc")
PATIENCE_S = 20.0
TWO = rules("ab")


def tls(certificates: Path, run: str = RUN) -> Callable[[str], Security]:
    """How each member talks whose certificates are in one folder."""
    return lambda member: Tls(run, member, certificates, certificates / TOKEN_FILE)


def expired(certificates: Path, folder: Path) -> Path:
    """A folder with what a member had whose certificate ended a month ago; the authority is still the same."""
    folder.mkdir()
    for name in ("ca.pem", "ca.key", TOKEN_FILE):
        (folder / name).write_bytes((certificates / name).read_bytes())
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=60)
    issue(folder, MEMBERS, days=30, now=long_ago)
    return folder


def is_let_in(address: str, trusted: Path, shown: Path | None, member: str = "a") -> bool:
    """Whether a handshake with `member`'s certificate from `shown`, or with none, ends in a conversation."""
    context = ssl.create_default_context(cafile=str(trusted / "ca.pem"))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if shown is not None:
        context.load_cert_chain(shown / f"{member}.pem", shown / f"{member}.key")
    with socket.create_connection(host_and_port(address), PATIENCE_S) as plain:
        try:
            with context.wrap_socket(plain) as encrypted:
                return bool(encrypted.read(1))  # a server that lets us in sends its HTTP/2 settings first
        except (ssl.SSLError, ConnectionError):
            return False


def call(
    address: str, security: Security, work: Callable[[grpc.aio.Channel], Awaitable[object]], peer: str = COORDINATOR
) -> grpc.aio.AioRpcError | None:
    """Does `work` on a channel; how it was refused, or None when it was not."""
    return refusal(lambda: open_channel(address, peer, security), work)


def refusal(
    opened: Callable[[], grpc.aio.Channel], work: Callable[[grpc.aio.Channel], Awaitable[object]]
) -> grpc.aio.AioRpcError | None:
    """Does `work` on a channel that is opened on the loop; how it was refused, or None when it was not."""

    async def within() -> grpc.aio.AioRpcError | None:
        async with opened() as channel:
            try:
                await work(channel)
            except grpc.aio.AioRpcError as error:
                return error
        return None

    return asyncio.run(within())


def join(replica: str, token: bytes, incarnation: str = "1", at_s: float | None = None, run: str = RUN) -> pb.Join:
    """What `replica` says first, proved with `token`."""
    at_s = time.time() if at_s is None else at_s
    config, corpus, theta = (bytes.fromhex(digest) for digest in (CONFIG, CORPUS, theta_digest([])))
    said = pb.Join(replica=replica, incarnation=incarnation, config_digest=config, corpus_digest=corpus)
    said.tokens_per_epoch, said.theta_digest = 1000, theta
    said.proved_at_s, said.proof = at_s, prove(token, run, replica, incarnation, at_s)
    return said


def proved(certificates: Path, replica: str) -> pb.Join:
    """The join of a member that knows the token."""
    return join(replica, read_token(certificates / TOKEN_FILE))


def attend(*joins: pb.Join) -> Callable[[grpc.aio.Channel], Awaitable[object]]:
    """Joins, waits for the first answer and leaves; for each of `joins`, one after the other."""

    async def work(channel: grpc.aio.Channel) -> None:
        for said in joins:
            conversation = round_pb2_grpc.RoundsStub(channel).Attend(timeout=PATIENCE_S)
            await conversation.write(pb.MemberMessage(join=said))
            await conversation.done_writing()
            async for _ in conversation:
                break

    return work


def put(
    payload: bytes, *, digest: bytes, replica: str = "a", round_number: int = 1, num_bytes: int | None = None
) -> Callable[[grpc.aio.Channel], Awaitable[object]]:
    """Puts a payload in one chunk, whatever its size."""
    header = payloads.PutHeader(digest=digest, replica=replica, round=round_number, kind="pseudo_gradient")
    header.num_bytes = len(payload) if num_bytes is None else num_bytes
    requests: Sequence[payloads.PutRequest] = (
        payloads.PutRequest(header=header),
        payloads.PutRequest(chunk=payloads.Chunk(data=payload)),
    )

    async def work(channel: grpc.aio.Channel) -> None:
        await payload_pb2_grpc.PayloadsStub(channel).Put(iter(requests), timeout=PATIENCE_S)

    return work


def get(replica: str, digest: bytes) -> Callable[[grpc.aio.Channel], Awaitable[object]]:
    """Gets a payload in the name of `replica`."""
    request = payloads.GetRequest(digest=digest, replica=replica, kind="pseudo_gradient", round=1)

    async def work(channel: grpc.aio.Channel) -> None:
        async for _ in payload_pb2_grpc.PayloadsStub(channel).Get(request, timeout=PATIENCE_S):
            pass

    return work


async def status(channel: grpc.aio.Channel) -> pb.StatusReply:
    """Asks how the run stands."""
    return await round_pb2_grpc.RoundsStub(channel).Status(pb.StatusRequest(), timeout=PATIENCE_S)


async def stop(channel: grpc.aio.Channel) -> None:
    """Asks the coordinator to end the run."""
    await round_pb2_grpc.RoundsStub(channel).Stop(pb.StopRequest(reason="enough"), timeout=PATIENCE_S)


def connect(address: str, number: int) -> list[socket.socket]:
    """So many connections that never say a word."""
    return [socket.create_connection(host_and_port(address), PATIENCE_S) for _ in range(number)]


def is_hung_up_on(connection: socket.socket) -> bool:
    """Waits until the other end has closed a connection."""
    connection.settimeout(PATIENCE_S)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@contextmanager
def coordinator(
    folder: Path, certificates: Path, run_rules: RoundRules = TWO, route: Route = "direct"
) -> Iterator[CoordinatorThread]:
    """A coordinator under TLS."""
    running = CoordinatorThread(folder, run_rules, route=route, security=tls(certificates))
    try:
        yield running
    finally:
        running.stop()


def assert_refused(error: grpc.aio.AioRpcError | None, code: grpc.StatusCode, *said: str) -> None:
    """It was, with this code, and all of this was said."""
    assert error is not None, "it was let in"
    assert error.code() is code, error.details()
    assert all(part in str(error.details()) for part in said), error.details()


def assert_still_serves(running: CoordinatorThread, certificates: Path) -> None:
    """The coordinator answers an honest member."""
    assert call(running.address, tls(certificates)("a"), status) is None
