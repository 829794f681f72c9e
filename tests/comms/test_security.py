"""The attack table of docs/security.md, row by row: real handshakes, real files, and a named error for each."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shutil
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from comms.agreement import COORDINATOR, CommittedRound, Finish, Payload, Report, RoundPlan
from comms.certificates import OPERATOR, TOKEN_FILE, CertificateError, dns_name, issue
from comms.channel import HANDSHAKE_DEADLINE_S, MOST_MESSAGE_BYTES, Channels, listen, new_server, open_channel
from comms.credentials import KeyFiles, read_keys
from comms.errors import AccessError, BadProof, Busy, Refused, RunFailed, StaleRound, TooLarge, Unreachable, WrongName
from comms.join_token import CLOCK_SKEW_S, Doorkeeper, prove, read_token
from comms.journal import Journal
from comms.ledger import Ledger
from comms.limits import Pace, Throttle, Turns
from comms.payloads import PayloadService
from comms.run_state import RoundRules, RunState
from comms.security import Loopback
from comms.store import PayloadStore, digest_of
from comms.transport_settings import Route
from comms.uploads import Uploads
from protos import payload_pb2 as payloads
from protos import payload_pb2_grpc, round_pb2_grpc
from protos import round_pb2 as pb
from tests.comms.members import PATIENCE_S, CoordinatorThread, Member, join_of, rules, transport_of
from tests.comms.strangers import (
    MEMBERS,
    RUN,
    attend,
    call,
    connect,
    expired,
    get,
    is_hung_up_on,
    is_let_in,
    join,
    proved,
    put,
    status,
    stop,
    tls,
)

Code = grpc.StatusCode
NOBODY = "127.0.0.1:9"
TWO = rules("ab")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the members of the run have."""
    folder = tmp_path_factory.mktemp("run") / "certs"
    issue(folder, MEMBERS, days=30)
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same names, by somebody else's authority."""
    folder = tmp_path_factory.mktemp("foreign") / "certs"
    issue(folder, MEMBERS, days=30)
    return folder


@contextmanager
def coordinator(
    folder: Path, certificates: Path, run_rules: RoundRules = TWO, route: Route = "direct"
) -> Iterator[CoordinatorThread]:
    running = CoordinatorThread(folder, run_rules, route=route, security=tls(certificates))
    try:
        yield running
    finally:
        running.stop()


def assert_refused(error: grpc.aio.AioRpcError | None, code: Code, *said: str) -> None:
    assert error is not None, "it was let in"
    assert error.code() is code, error.details()
    assert all(part in str(error.details()) for part in said), error.details()


def assert_still_serves(running: CoordinatorThread, certificates: Path) -> None:
    assert call(running.address, tls(certificates)("a"), status) is None


@pytest.mark.parametrize("route", ["direct", "relay"])
def test_a_run_under_tls_is_a_run(tmp_path: Path, certs: Path, route: Route) -> None:
    with coordinator(tmp_path, certs, route=route) as running:
        members = [Member(tmp_path, name, running.address, route=route, security=tls(certs)) for name in "ab"]
        for member in members:
            member.join()
        running.join()
    assert running.error is None
    assert len(members[0].applied) == 3
    assert (members[0].applied, members[0].contents) == (members[1].applied, members[1].contents)


# ---- who shows no certificate, or none that counts ----


def test_no_certificate(tmp_path: Path, certs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A handshake that fails is silent on the wire, so that strangers learn nothing; its reason is in the log."""
    with coordinator(tmp_path, certs) as running:
        assert is_let_in(running.address, certs, shown=certs)
        assert not is_let_in(running.address, certs, shown=None)
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in capfd.readouterr().err
        assert_still_serves(running, certs)


def test_plain_text(tmp_path: Path, certs: Path) -> None:
    with coordinator(tmp_path, certs) as running:
        assert_refused(call(running.address, Loopback(), attend(proved(certs, "a"))), Code.UNAVAILABLE)
        assert_still_serves(running, certs)


def test_wrong_authority(tmp_path: Path, certs: Path, foreign: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with coordinator(tmp_path, certs) as running:
        assert not is_let_in(running.address, certs, shown=foreign)
        assert "CERTIFICATE_VERIFY_FAILED: unable to get local issuer" in capfd.readouterr().err
        assert_still_serves(running, certs)


def test_expired(tmp_path: Path, certs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old = expired(certs, tmp_path / "old")
    with coordinator(tmp_path, certs) as running:
        assert not is_let_in(running.address, certs, shown=old)
        assert "CERTIFICATE_VERIFY_FAILED: certificate has expired" in capfd.readouterr().err
        assert_still_serves(running, certs)


def test_a_server_that_is_not_who_it_should_be_gets_no_word(tmp_path: Path, certs: Path, foreign: Path) -> None:
    with coordinator(tmp_path, certs) as running:
        asked = call(running.address, tls(certs)("a"), status, peer="b")
        assert_refused(asked, Code.UNAVAILABLE, "Hostname Verification")
        assert_refused(call(running.address, tls(foreign)("a"), status), Code.UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED")


def test_a_member_that_is_not_let_in_says_what_the_handshake_said(tmp_path: Path, certs: Path, foreign: Path) -> None:
    with (
        coordinator(tmp_path, certs) as running,
        transport_of(tmp_path, "a", running.address, outage_deadline_s=1.0, security=tls(foreign)) as a,
    ):
        a.join(join_of("a", a))
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            a.receive()


# ---- who shows a certificate, and says something else ----


def test_another_members_name(tmp_path: Path, certs: Path) -> None:
    said = ("WrongName", "'a'", "'b'")
    digest = hashlib.sha256(b"x").digest()
    with coordinator(tmp_path, certs, route="relay") as running:
        for work in (attend(proved(certs, "a")), put(b"x", digest=digest, replica="a"), get("a", digest)):
            assert_refused(call(running.address, tls(certs)("b"), work), Code.PERMISSION_DENIED, *said)
        assert_refused(
            call(running.address, tls(certs)("c"), put(b"x", digest=digest, replica="c")),
            Code.PERMISSION_DENIED, "WrongName", "'c' is none of this run's replicas",
        )  # fmt: skip
        assert_still_serves(running, certs)
    assert not list((tmp_path / "relayed").iterdir())


def test_another_members_name_at_a_replica(tmp_path: Path, certs: Path) -> None:
    with transport_of(tmp_path, "a", NOBODY, security=tls(certs)) as a:
        digest = bytes.fromhex(a.publish(1, "embed", b"x").digest)
        refused = call(a.address, tls(certs)("b"), get(COORDINATOR, digest), peer="a")
        assert_refused(refused, Code.PERMISSION_DENIED, "WrongName", "'b'")
        assert call(a.address, tls(certs)("b"), get("b", digest), peer="a") is None


def test_a_replica_with_another_ones_certificate_ends_with_both_names(tmp_path: Path, certs: Path) -> None:
    with (
        coordinator(tmp_path, certs) as running,
        transport_of(tmp_path, "a", running.address, security=lambda _: tls(certs)("b")) as a,
    ):
        a.join(join_of("a", a))
        with pytest.raises(Refused, match="WrongName.*'a'.*'b'"):
            a.receive()


def test_only_the_operator_stops_a_run(tmp_path: Path, certs: Path) -> None:
    with coordinator(tmp_path, certs) as running:
        for member in ("a", COORDINATOR):
            refused = call(running.address, tls(certs)(member), stop)
            assert_refused(refused, Code.PERMISSION_DENIED, "NotTheOperator", repr(member))
        with transport_of(tmp_path, "a", running.address, security=tls(certs)) as a:
            a.join(join_of("a", a))
            with transport_of(tmp_path, "b", running.address, security=tls(certs)) as b:
                b.join(join_of("b", b))
                assert isinstance(a.receive(), RoundPlan)
                assert call(running.address, tls(certs)(OPERATOR), stop) is None
                assert a.receive() == Finish("stopped by the operator: enough")
        running.join()
    assert isinstance(running.error, RunFailed)


# ---- the join token ----


def test_replayed_token(tmp_path: Path, certs: Path) -> None:
    recorded = proved(certs, "a")
    with coordinator(tmp_path, certs) as running:
        refused = call(running.address, tls(certs)("a"), attend(recorded, recorded))
        assert_refused(refused, Code.UNAUTHENTICATED, "BadProof", "used before")
        assert_still_serves(running, certs)


def test_a_join_without_the_token(tmp_path: Path, certs: Path) -> None:
    unproved = proved(certs, "a")
    unproved.proof = b""
    with coordinator(tmp_path, certs) as running:
        for said in (unproved, join("a", b"a token of sixteen"), join("a", read_token(certs / TOKEN_FILE), run="x")):
            refused = call(running.address, tls(certs)("a"), attend(said))
            assert_refused(refused, Code.UNAUTHENTICATED, "BadProof", "does not know")


def test_a_replica_with_an_old_token_is_told_so_at_once(tmp_path: Path, certs: Path) -> None:
    mine = copy_of(certs, tmp_path / "mine")
    token_in(mine, "the token of last month")
    with (
        coordinator(tmp_path, certs) as running,
        transport_of(tmp_path, "a", running.address, security=tls(mine)) as a,
    ):
        a.join(join_of("a", a))
        with pytest.raises(Refused, match="BadProof"):
            a.receive()


class Heard(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self._said = said
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._said in record.getMessage():
            self.event.set()


@pytest.mark.parametrize("arrives", [True, False])
def test_a_member_of_the_run_waits_for_the_new_token_but_not_for_ever(
    tmp_path: Path, certs: Path, *, arrives: bool
) -> None:
    """The token is replaced at the coordinator first; a replica's stream breaks before it has the new one."""
    mine, theirs = (copy_of(certs, tmp_path / name) for name in ("mine", "theirs"))
    refused = Heard("does not know this run's join token")
    logging.getLogger("comms.coordinator").addHandler(refused)
    try:
        with coordinator(tmp_path, theirs, rules("a")) as running:
            address = running.address
            with transport_of(
                tmp_path, "a", address, outage_deadline_s=10.0 if arrives else 1.5, security=tls(mine)
            ) as a:
                a.join(join_of("a", a))
                assert isinstance(a.receive(), RoundPlan)
                running.stop()
                token_in(theirs, "the token after it")
                again = CoordinatorThread(tmp_path, rules("a"), address, security=tls(theirs))
                assert refused.event.wait(PATIENCE_S)
                if arrives:
                    token_in(mine, "the token after it")
                    assert isinstance(a.receive(), RoundPlan)
                else:
                    with pytest.raises(Unreachable, match="BadProof"):
                        a.receive()
                again.stop()
    finally:
        logging.getLogger("comms.coordinator").removeHandler(refused)


def copy_of(certs: Path, folder: Path) -> Path:
    shutil.copytree(certs, folder)
    return folder


@pytest.mark.parametrize(
    ("proved_at_s", "taken"),
    [
        (1000.0 - CLOCK_SKEW_S, True),
        (1000.0 + CLOCK_SKEW_S, True),
        (999.0 - CLOCK_SKEW_S, False),
        (1001.0 + CLOCK_SKEW_S, False),
        (float("nan"), False),
        (float("inf"), False),
    ],
)
def test_a_proof_counts_for_minutes(tmp_path: Path, proved_at_s: float, *, taken: bool) -> None:
    path = token_in(tmp_path, "a token of sixteen")
    proof = prove(read_token(path), RUN, "a", "1", proved_at_s)
    doorkeeper = Doorkeeper(RUN, path, clock=lambda: 1000.0)
    if taken:
        doorkeeper.admit("a", "1", proof, proved_at_s)
    else:
        with pytest.raises(BadProof, match="set its clock"):
            doorkeeper.admit("a", "1", proof, proved_at_s)


def test_an_incarnation_comes_back_with_a_later_proof_only_and_others_do_not_mind(tmp_path: Path) -> None:
    path = token_in(tmp_path, "a token of sixteen")
    doorkeeper = Doorkeeper(RUN, path, clock=lambda: 1000.0)

    def admit(replica: str, incarnation: str, at_s: float) -> None:
        doorkeeper.admit(replica, incarnation, prove(read_token(path), RUN, replica, incarnation, at_s), at_s)

    admit("a", "1", 990.0)
    admit("a", "1", 991.0)
    for earlier in (991.0, 990.5):
        with pytest.raises(BadProof, match="used before"):
            admit("a", "1", earlier)
    admit("a", "2", 980.0)  # started again, on a machine whose clock is behind
    admit("b", "1", 990.0)
    with pytest.raises(BadProof, match="used before"):
        admit("a", "1", 991.0)


def test_a_token_can_be_replaced_while_the_run_goes_on(tmp_path: Path) -> None:
    path = token_in(tmp_path, "a token of sixteen")
    doorkeeper = Doorkeeper(RUN, path, clock=lambda: 1000.0)
    token_in(tmp_path, "the token after it")
    doorkeeper.admit("a", "1", prove(b"the token after it", RUN, "a", "1", 1000.0), 1000.0)
    path.unlink()
    doorkeeper.admit("a", "1", prove(b"the token after it", RUN, "a", "1", 1001.0), 1001.0)
    with pytest.raises(BadProof, match="does not know"):
        doorkeeper.admit("a", "1", prove(b"a token of sixteen", RUN, "a", "1", 1002.0), 1002.0)


def token_in(folder: Path, token: str) -> Path:
    (folder / TOKEN_FILE).write_text(token + "\n")
    return folder / TOKEN_FILE


@pytest.mark.parametrize("content", [None, "", "short", "x" * 5000])
def test_a_file_without_a_token_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        token_in(tmp_path, content)
    with pytest.raises(CertificateError, match=TOKEN_FILE):
        read_token(tmp_path / TOKEN_FILE)


# ---- too much, too slow, too late ----


def test_oversized_message(tmp_path: Path, certs: Path) -> None:
    digest = hashlib.sha256(b"x").digest()
    big = proved(certs, "a")
    big.address = "x" * (MOST_MESSAGE_BYTES + 1)
    with coordinator(tmp_path, certs, route="relay") as running:
        for work in (attend(big), put(b"x" * (MOST_MESSAGE_BYTES + 1), digest=digest)):
            refused = call_without_own_limit(running.address, certs, work)
            assert_refused(refused, Code.RESOURCE_EXHAUSTED, "larger than max")
        announced = put(b"x", digest=digest, num_bytes=5 * 2**30)
        refused = call(running.address, tls(certs)("a"), announced)
        assert_refused(refused, Code.OUT_OF_RANGE, "TooLarge", "exchange.most_payload_bytes")
        assert_still_serves(running, certs)
    assert not list((tmp_path / "relayed").iterdir())


def call_without_own_limit(address: str, certs: Path, work: Callable[[grpc.aio.Channel], Any]) -> Any:
    """Like `call`, from a client that does not keep to our limit on messages."""

    async def within() -> grpc.aio.AioRpcError | None:
        keys = read_keys(certs, "a")
        credentials = grpc.ssl_channel_credentials(keys.authority, keys.key, keys.certificate)
        options = [("grpc.ssl_target_name_override", dns_name(COORDINATOR)), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            try:
                await work(channel)
            except grpc.aio.AioRpcError as error:
                return error
        return None

    return asyncio.run(within())


def test_forged_digest(tmp_path: Path, certs: Path) -> None:
    forged = put(b"other", digest=hashlib.sha256(b"truth").digest())
    with coordinator(tmp_path, certs, route="relay") as running:
        assert_refused(call(running.address, tls(certs)("a"), forged), Code.DATA_LOSS, "WrongDigest")
        assert_still_serves(running, certs)
    assert not list((tmp_path / "relayed").iterdir())


def test_a_stale_rounds_payload(tmp_path: Path, certs: Path) -> None:
    digest = hashlib.sha256(b"x").digest()
    with coordinator(tmp_path, certs, route="relay") as running:
        for round_number in (0, 2, 2**32 - 1):
            refused = call(running.address, tls(certs)("a"), put(b"x", digest=digest, round_number=round_number))
            assert_refused(refused, Code.FAILED_PRECONDITION, "StaleRound", "round 1 is open")
        assert call(running.address, tls(certs)("a"), put(b"x", digest=digest)) is None


def test_1000_half_open_connections(tmp_path: Path, certs: Path) -> None:
    with coordinator(tmp_path, certs) as running:
        strangers = connect(running.address, 1000)
        started_s = time.monotonic()
        members = [Member(tmp_path, name, running.address, security=tls(certs)) for name in "ab"]
        for member in members:
            member.join()
        assert time.monotonic() - started_s < HANDSHAKE_DEADLINE_S, "they were in nobody's way"
        # The run is over, and with it the coordinator. Until then it had not given up on them:
        assert len(members[0].applied) == 3
        running.join()
        for stranger in strangers:
            stranger.close()


def test_who_connects_and_says_nothing_is_hung_up_on(certs: Path) -> None:
    async def serve() -> None:
        server = new_server()
        address = listen(server, "127.0.0.1:0", tls(certs)(COORDINATOR))
        await server.start()
        strangers = connect(address, 20)
        started_s = time.monotonic()
        gone = await asyncio.gather(*(asyncio.to_thread(is_hung_up_on, stranger) for stranger in strangers))
        assert all(gone)
        assert time.monotonic() - started_s < HANDSHAKE_DEADLINE_S + 3.0
        for stranger in strangers:
            stranger.close()
        await server.stop(None)

    asyncio.run(serve())


def with_relay(
    folder: Path,
    uploads: Uploads,
    pace: Pace,
    work: Callable[[grpc.aio.Channel], Any],
    ledger_type: type[Ledger] = Ledger,
) -> None:
    """Runs `work` against a relay on this machine."""

    async def serve() -> None:
        server = new_server()
        with ledger_type(folder / "ledger.jsonl", COORDINATOR) as ledger:
            service = PayloadService(PayloadStore(folder / "store"), ledger, uploads, pace)
            payload_pb2_grpc.add_PayloadsServicer_to_server(service, server)
            address = listen(server, "127.0.0.1:0", Loopback())
            await server.start()
            try:
                async with open_channel(address, COORDINATOR, Loopback()) as channel:
                    await work(channel)
            finally:
                await server.stop(None)

    asyncio.run(serve())


def header_of(num_bytes: int) -> payloads.PutRequest:
    header = payloads.PutHeader(digest=bytes(32), num_bytes=num_bytes, replica="a", round=1, kind="pseudo_gradient")
    return payloads.PutRequest(header=header)


@pytest.mark.parametrize("trickle", [b"", b"x"])
def test_slow_loris(tmp_path: Path, trickle: bytes) -> None:
    """Slower than the pace, or with messages that bring nothing."""

    async def crawl() -> AsyncIterator[payloads.PutRequest]:
        yield header_of(2**20)
        while True:
            yield payloads.PutRequest(chunk=payloads.Chunk(data=trickle))
            await asyncio.sleep(0.02)

    async def work(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await payload_pb2_grpc.PayloadsStub(channel).Put(crawl(), timeout=20.0)
        assert_refused(caught.value, Code.DEADLINE_EXCEEDED, "TooSlow")

    started_s = time.monotonic()
    with_relay(tmp_path, Uploads(lambda: ("a",), 2**30, lambda: 1), Pace(0.3, 10_000.0), work)
    assert time.monotonic() - started_s < 5.0
    assert not list((tmp_path / "store").iterdir())


def test_slow_links_that_move_are_waited_for(tmp_path: Path) -> None:
    """Both ways for much longer than a pause may last."""
    payload = bytes(range(256)) * 2**16
    pause_s, pace = 0.02, Pace(1.0, 1000.0)  # flow control lets through several MiB at a time
    header = header_of(len(payload))
    header.header.digest = bytes.fromhex(digest_of(payload))

    async def requests() -> AsyncIterator[payloads.PutRequest]:
        yield header
        for start in range(0, len(payload), 2**17):
            await asyncio.sleep(pause_s)
            yield payloads.PutRequest(chunk=payloads.Chunk(data=payload[start : start + 2**17]))

    async def work(channel: grpc.aio.Channel) -> None:
        stub, started_s, received = payload_pb2_grpc.PayloadsStub(channel), time.monotonic(), bytearray()
        await stub.Put(requests(), timeout=20.0)
        assert time.monotonic() - started_s > 2 * pace.grace_s
        request = payloads.GetRequest(digest=header.header.digest, replica="a", kind="pseudo_gradient", round=1)
        async for chunk in stub.Get(request, timeout=20.0):
            received += chunk.data
            await asyncio.sleep(2 * pause_s)
        assert received == payload
        assert time.monotonic() - started_s > 4 * pace.grace_s

    with_relay(tmp_path, Uploads(lambda: ("a",), 2**30, lambda: 1), pace, work)


def test_who_announces_and_then_says_nothing(tmp_path: Path) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        silent = payload_pb2_grpc.PayloadsStub(channel).Put(timeout=20.0)
        await silent.write(header_of(10))
        assert_refused(await failure(silent), Code.DEADLINE_EXCEEDED, "TooSlow")
        mute = payload_pb2_grpc.PayloadsStub(channel).Put(timeout=20.0)
        assert_refused(await failure(mute), Code.INVALID_ARGUMENT)

    with_relay(tmp_path, Uploads(lambda: ("a",), 2**30, lambda: 1), Pace(0.2), work)


async def failure(call_: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_
    return caught.value


class TellingLedger(Ledger):
    """Tells when a transfer has ended."""

    ended: asyncio.Event

    def transfer(self, **row: Any) -> None:
        super().transfer(**row)
        self.ended.set()


def test_a_reader_that_does_not_read_is_hung_up_on(tmp_path: Path) -> None:
    payload = bytes(2**26)  # more than flow control lets wait on the way
    PayloadStore(tmp_path / "store").put(payload)
    digest = bytes.fromhex(digest_of(payload))
    request = payloads.GetRequest(digest=digest, replica="a", kind="pseudo_gradient", round=1)

    async def work(channel: grpc.aio.Channel) -> None:
        TellingLedger.ended = asyncio.Event()
        sleeper = payload_pb2_grpc.PayloadsStub(channel).Get(request, timeout=30.0)
        await sleeper.read()
        await asyncio.wait_for(TellingLedger.ended.wait(), 10.0)  # whoever serves it waits no longer
        assert_refused(await failure(read_on(sleeper)), Code.DEADLINE_EXCEEDED, "TooSlow")

    async def read_on(call_: Any) -> None:
        while await call_.read() is not grpc.aio.EOF:
            pass

    with_relay(tmp_path, Uploads(lambda: (), 0, lambda: 1), Pace(0.3), work, TellingLedger)


def test_a_flood_of_messages_is_let_through_slowly() -> None:
    async def flood() -> float:
        throttle, started_s = Throttle(burst=100, per_s=1000.0), time.monotonic()
        for _ in range(100):
            await throttle.wait()
        assert time.monotonic() - started_s < 0.1
        for _ in range(200):
            await throttle.wait()
        return time.monotonic() - started_s

    assert asyncio.run(flood()) >= 0.2


def test_a_member_that_floods_the_coordinator_is_in_nobody_elses_way(
    tmp_path: Path, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = list[RunState](), Journal.write

    def count(journal: Journal, state: RunState, committed: CommittedRound | None = None) -> None:
        written.append(state)
        write(journal, state, committed)

    monkeypatch.setattr(Journal, "write", count)

    def flood(said: pb.Join) -> Callable[[grpc.aio.Channel], Any]:
        async def work(channel: grpc.aio.Channel) -> None:
            conversation = round_pb2_grpc.RoundsStub(channel).Attend()
            await conversation.write(pb.MemberMessage(join=said))
            flooding = asyncio.create_task(talk(conversation))
            began_s = time.monotonic()
            while len(written) < 250:
                started_s = time.monotonic()
                await status(channel)
                assert time.monotonic() - started_s < 1.0
            assert time.monotonic() - began_s > 0.7, "200 at once, and the rest at 50 a second"
            flooding.cancel()

        return work

    async def talk(conversation: Any) -> None:
        while True:
            await conversation.write(pb.MemberMessage(acknowledge=pb.Acknowledge(round=1, attempt=1)))

    with coordinator(tmp_path, certs) as running:
        assert call(running.address, tls(certs)("a"), flood(proved(certs, "a"))) is None


def test_a_flood_from_one_caller_waits_for_itself_alone() -> None:
    async def flood() -> None:
        turns, held = Turns(2), list[str]()

        async def take(caller: str, until: asyncio.Event) -> None:
            async with turns.of(caller):
                held.append(caller)
                await until.wait()

        enough = asyncio.Event()
        takers = [asyncio.create_task(take("flood", enough)) for _ in range(100)]
        other = asyncio.create_task(take("b", enough))
        while "b" not in held:
            await asyncio.sleep(0)
        assert held.count("flood") == 2
        enough.set()
        await asyncio.gather(*takers, other)
        assert held.count("flood") == 100
        assert not turns._callers, "nothing is kept of who has gone"

    asyncio.run(flood())


def test_quotas_of_uploads() -> None:
    open_round = 1
    uploads = Uploads(lambda: ("a", "b"), 100_000, lambda: open_round)

    def put_one(replica: str, digest: str, num_bytes: int, round_number: int = 1) -> None:
        with uploads.admitted(replica, round_number, digest, num_bytes):
            pass

    put_one("a", "x", 60_000)
    put_one("a", "x", 60_000)  # again: its stream broke when it was there
    with pytest.raises(TooLarge, match=r"120000 .*most_payload_bytes = 100000"):
        put_one("a", "y", 60_000)
    put_one("b", "y", 60_000)
    with pytest.raises(WrongName, match="'z' is none of"):
        put_one("z", "y", 1)
    with pytest.raises(StaleRound, match="of round 2; round 1 is open"):
        put_one("a", "y", 1, 2)
    with pytest.raises(ZeroDivisionError), uploads.admitted("a", 1, "y", 40_000):
        raise ZeroDivisionError  # what did not arrive costs nothing
    put_one("a", "y", 40_000)
    open_round = 2
    put_one("a", "y", 100_000, 2)
    with uploads.admitted("b", 2, "x", 80_000), uploads.admitted("b", 2, "y", 80_000), pytest.raises(Busy):
        put_one("b", "z", 80_000, 2)
    open_round = 3
    for number in range(24):
        put_one("a", str(number), 0, 3)
    with pytest.raises(TooLarge):
        put_one("a", "one more empty file", 0, 3)


def test_a_report_beyond_the_quota_leaves_its_replica_out(tmp_path: Path, certs: Path) -> None:
    run_rules = rules("ab", min_replicas=1, rounds=1, fetch=1.0)
    greedy = Report(1, (Payload("embed", "ab" * 32, run_rules.most_payload_bytes + 1),), 130, 2.0)
    with (
        coordinator(tmp_path, certs, run_rules=run_rules) as running,
        transport_of(tmp_path, "a", running.address, security=tls(certs)) as a,
    ):
        a.join(join_of("a", a))
        b = Member(tmp_path, "b", running.address, security=tls(certs))
        assert isinstance(a.receive(), RoundPlan)
        a.send(greedy)
        b.join()
    assert [entry.replica for entry in b.applied[0]] == ["b"] * 3
    [row] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "exchange.most_payload_bytes" in row["absent"][0]["reason"]


def test_every_access_error_has_a_code() -> None:
    from comms.caller import _CODES  # noqa: PLC0415

    assert set(AccessError.__subclasses__()) == set(_CODES)


# ---- certificates on the disk ----


def test_rotation_without_stopping(tmp_path: Path) -> None:
    """Both ends take renewed files up: the server at once, the client with its next channel; half-written ones wait."""
    folder = tmp_path / "certs"
    issue(folder, MEMBERS, days=30)
    with coordinator(tmp_path, folder) as running:
        before = certificate_of(running.address, folder)
        members = [
            Member(tmp_path, name, running.address, before_report=lambda _: renew(folder), security=tls(folder))
            for name in "ab"
        ]
        (folder / f"{COORDINATOR}.pem").write_text("half of a certificate")
        assert certificate_of(running.address, folder) == before, "what is broken is not taken"
        renew(folder)
        assert certificate_of(running.address, folder) != before
        for member in members:
            member.join()
        running.join()
    assert running.error is None


_renewing = threading.Lock()


def renew(folder: Path) -> None:
    with _renewing:
        issue(folder, MEMBERS, days=60)


def certificate_of(address: str, folder: Path) -> str:
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=str(folder / "ca.pem")) if folder else ""


def test_a_client_opens_new_channels_with_renewed_files(tmp_path: Path) -> None:
    issue(tmp_path, "a", days=30)

    async def dial() -> None:
        channels = Channels(tls(tmp_path)("a"))
        before = channels.to("b", NOBODY)
        assert channels.to("b", NOBODY) is before
        assert channels.to("c", NOBODY) is not before, "another name at the same address"
        issue(tmp_path, "a", days=60)
        after = channels.to("b", NOBODY)
        assert after is not before
        assert channels.to("b", NOBODY) is after
        await channels.close()

    asyncio.run(dial())


def test_a_client_takes_renewed_files_up_once(tmp_path: Path) -> None:
    issue(tmp_path, "a", days=30)
    files = KeyFiles(tmp_path, "a")
    assert files.renewed() is None
    issue(tmp_path, "a", days=60)
    renewed = files.renewed()
    assert renewed is not None
    assert renewed == files.keys
    assert files.renewed() is None
    (tmp_path / "a.key").write_text("half of a key")
    assert files.renewed() is None
    assert files.keys == renewed
    (tmp_path / "a.key").unlink()
    assert files.renewed() is None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "a.pem").unlink(), r"a\.pem: No such file.*dist-train certs"),
        (lambda folder: (folder / "a.key").unlink(), r"a\.key: No such file"),
        (lambda folder: (folder / "ca.pem").unlink(), r"ca\.pem: No such file"),
        (lambda folder: (folder / "a.pem").write_text("nonsense"), "no PEM file"),
        (lambda folder: (folder / "a.key").write_text("nonsense"), "no PEM file"),
        (lambda folder: (folder / "b.key").replace(folder / "a.key"), "does not belong to"),
        (lambda folder: [(folder / f"b.{x}").replace(folder / f"a.{x}") for x in ("pem", "key")], "names .*not a"),
    ],
)
def test_files_that_nobody_would_believe_are_named(tmp_path: Path, harm: Callable[[Path], object], said: str) -> None:
    issue(tmp_path, "ab", days=30)
    harm(tmp_path)
    with pytest.raises(CertificateError, match=said):
        read_keys(tmp_path, "a")


def test_what_another_authority_issued_or_time_has_ended_is_named(tmp_path: Path, certs: Path, foreign: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name, source in (("ca.pem", certs), ("a.pem", foreign), ("a.key", foreign)):
        (mine / name).write_bytes((source / name).read_bytes())
    with pytest.raises(CertificateError, match="was not issued by"):
        read_keys(mine, "a")
    with pytest.raises(CertificateError, match="is valid from .* renew it"):
        read_keys(expired(certs, tmp_path / "old"), "a")


@pytest.mark.parametrize("member", ["ca", "../a", "", "a/b", ".a", "-a", "a\n", "x" * 65])
def test_a_name_that_is_none_gets_no_certificate(tmp_path: Path, member: str) -> None:
    with pytest.raises(CertificateError, match="no member's name"):
        issue(tmp_path / "certs", ["a", member], days=1)
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("member", ["a", "Node_7.x-1", "_", "x" * 64, "a."])
def test_every_name_that_a_replica_can_have_works_in_a_certificate(tmp_path: Path, member: str) -> None:
    issue(tmp_path / "certs", [COORDINATOR, member], days=1)
    with coordinator(tmp_path, tmp_path / "certs") as running:
        assert call(running.address, tls(tmp_path / "certs")(member), get(member, bytes(32))) is not None
        assert call(running.address, tls(tmp_path / "certs")(member), status) is None


def test_private_files_are_their_owners(tmp_path: Path) -> None:
    issue(tmp_path, "a", days=1)
    private = {path.name for path in tmp_path.iterdir() if path.stat().st_mode & 0o077 == 0}
    assert private == {"ca.key", "a.key", TOKEN_FILE}


def test_secrets_do_not_show(certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        shown = repr(read_keys(certs, "a")) + repr(tls(certs)("a")) + str(KeyFiles(certs, "a").keys) + caplog.text
    assert "PRIVATE KEY" not in shown
    assert read_token(certs / TOKEN_FILE).decode() not in shown


def test_every_row_of_the_attack_table_has_its_tests() -> None:
    root = Path(__file__).parents[2]
    defined = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    rows = (root / "docs" / "security.md").read_text(encoding="utf-8").split("## The attack table")[1].split("\n## ")[0]
    named = re.findall(r"`(test_\w+)(…?)`", rows)
    assert len(named) > 20
    for name, shortened in named:
        assert f"def {name}" + ("" if shortened else "(") in defined
