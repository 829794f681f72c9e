"""What the doctor measures over the real RPC, and what nobody can do with the service behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from comms import probe_service
from comms.address import host_and_port
from comms.agreement import COORDINATOR
from comms.certificates import issue
from comms.channel import listen, new_server, open_blocking_channel
from comms.errors import CommsError, Unreachable
from comms.ledger import Ledger
from comms.limits import Allowances
from comms.loop_thread import LoopThread
from comms.probe import _answering, connection, dialled_back, download, knock, read_clock, upload
from comms.probe_service import BURST, MOST_BYTES, NONCE_BYTES, ProbeService, source_host
from comms.security import Loopback, Security
from comms.wire import WireError
from protos import probe_pb2 as pb
from protos import probe_pb2_grpc
from tests.comms.strangers import MEMBERS, tls

HERE = "127.0.0.1:0"
ANOTHER_INTERFACE = "127.0.0.7:0"
NONCE = bytes(NONCE_BYTES)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "certs"
    issue(folder, MEMBERS, days=30)
    return folder


@contextmanager
def serving(folder: Path, security: Security | None = None, ahead_s: float = 0.0) -> Iterator[str]:
    """A probe service whose machine's clock is `ahead_s` of ours; its address."""
    loop, secured = LoopThread("served"), security or Loopback()

    async def start() -> tuple[grpc.aio.Server, str]:
        server = new_server()
        service = ProbeService(secured, ledger, clock=lambda: time.time() + ahead_s)
        probe_pb2_grpc.add_ProbesServicer_to_server(service, server)
        bound = listen(server, HERE, secured)
        await server.start()
        return server, bound

    with Ledger(folder / "ledger.jsonl", COORDINATOR) as ledger:
        server, address = loop.wait(start())
        try:
            yield address
        finally:
            loop.wait(server.stop(None))
            loop.stop()


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[probe_pb2_grpc.ProbesStub]:
    with serving(tmp_path) as address, open_blocking_channel(address, COORDINATOR, Loopback()) as channel:
        yield probe_pb2_grpc.ProbesStub(channel)


def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    assert callable(call)
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error.code(), str(error.details())


def test_clock_rate_and_way_back_are_measured_under_tls(tmp_path: Path, certs: Path) -> None:
    security = tls(certs)
    with (
        serving(tmp_path, security(COORDINATOR), ahead_s=400.0) as address,
        connection(address, COORDINATOR, security("a")) as channel,
    ):
        clock = read_clock(channel)
        assert clock.ahead_s == pytest.approx(400.0, abs=max(0.05, clock.round_trip_s))
        assert 0 < clock.round_trip_s <= clock.median_round_trip_s
        for flow in (download(channel, 2**20), upload(channel, 2**20)):
            assert 0.9 * 2**20 < flow.num_bytes <= 2**20 + 1000
            assert flow.bits_per_second > 0
        back = dialled_back(channel, HERE, security("a"))
        assert back.reached, back.why


def test_who_listens_on_another_interface_than_it_dials_from_is_not_reached(tmp_path: Path) -> None:
    with serving(tmp_path) as address, connection(address, COORDINATOR, Loopback()) as channel:
        back = dialled_back(channel, ANOTHER_INTERFACE, Loopback())
        assert not back.reached
        assert back.address.startswith("127.0.0.1:")
        assert back.why == "nobody answered within 5 s (UNAVAILABLE)"


def test_somebody_else_at_the_callers_address_is_not_taken_for_it(stub: probe_pb2_grpc.ProbesStub) -> None:
    loop = LoopThread("somebody")
    server, bound = loop.wait(_answering(b"another nonce 16", HERE, Loopback()))
    reply = stub.DialBack(pb.DialBackRequest(port=host_and_port(bound)[1], nonce=NONCE))
    assert (reply.reached, reply.why) == (False, "somebody else answered")
    loop.wait(server.stop(None))
    loop.stop()


def test_under_tls_whoever_answers_must_be_the_caller(tmp_path: Path, certs: Path) -> None:
    security, loop = tls(certs), LoopThread("b")
    server, bound = loop.wait(_answering(NONCE, HERE, security("b")))
    with serving(tmp_path, security(COORDINATOR)) as address:
        request = pb.DialBackRequest(port=host_and_port(bound)[1], nonce=NONCE)
        for member, reached in (("a", False), ("b", True)):
            with connection(address, COORDINATOR, security(member)) as channel:
                assert probe_pb2_grpc.ProbesStub(channel).DialBack(request).reached is reached
    loop.wait(server.stop(None))
    loop.stop()


@pytest.mark.parametrize(("port", "nonce"), [(22, NONCE), (0, NONCE), (70_000, NONCE), (7000, b"short")])
def test_privileged_ports_are_not_dialled(stub: probe_pb2_grpc.ProbesStub, port: int, nonce: bytes) -> None:
    code, said = refusal(lambda: stub.DialBack(pb.DialBackRequest(port=port, nonce=nonce)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not dialled" in said


def test_one_caller_is_measured_so_often_and_then_refused(stub: probe_pb2_grpc.ProbesStub) -> None:
    for _ in range(BURST):
        assert list(stub.Download(pb.DownloadRequest(num_bytes=1)))
    code, said = refusal(lambda: stub.DialBack(pb.DialBackRequest(port=7000, nonce=NONCE)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "Busy: doctor-127.0.0.1 was measured often enough" in said
    code, _ = refusal(lambda: stub.Upload(iter([pb.ProbeChunk(data=b"x")])))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_measurement_has_a_size(stub: probe_pb2_grpc.ProbesStub) -> None:
    code, said = refusal(lambda: list(stub.Download(pb.DownloadRequest(num_bytes=MOST_BYTES + 1))))
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert "TooLarge" in said
    too_many = (pb.ProbeChunk(data=bytes(2**20)) for _ in range(MOST_BYTES // 2**20 + 8))
    assert stub.Upload(too_many).num_bytes < MOST_BYTES + 2 * 2**20


def test_one_measurement_at_a_time_and_who_does_not_read_is_hung_up_on(
    stub: probe_pb2_grpc.ProbesStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_service, "MOST_S", 0.5)
    unread = stub.Download(pb.DownloadRequest(num_bytes=MOST_BYTES))
    next(unread)
    code, said = refusal(lambda: stub.DialBack(pb.DialBackRequest(port=7000, nonce=NONCE)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "another machine is being measured" in said
    give_up_s = time.monotonic() + 20.0
    while time.monotonic() < give_up_s:
        try:
            assert list(stub.Download(pb.DownloadRequest(num_bytes=1)))
        except grpc.RpcError:
            continue
        return
    pytest.fail("the turn was never given back")


def test_an_upload_that_stands_still_ends(stub: probe_pb2_grpc.ProbesStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_service, "MOST_S", 0.5)

    def slowly() -> Iterator[pb.ProbeChunk]:
        for _ in range(2):
            yield pb.ProbeChunk(data=b"x")
        time.sleep(3.0)  # an attacker's pause; nothing is waited for

    assert stub.Upload(slowly(), timeout=20.0).num_bytes > 0


def test_callers_do_not_use_up_each_others_allowance() -> None:
    allowances = Allowances(2, 0.1)
    assert [allowances.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert allowances.take("b", 0.0)
    assert not allowances.take("a", 9.0)
    assert allowances.take("a", 19.0)
    for number in range(5000):
        allowances.take(f"stranger {number}", 20.0)
    assert len(allowances._left) <= 1024


@pytest.mark.parametrize(
    ("peer", "host"),
    [("ipv4:192.0.2.1:5000", "192.0.2.1"), ("ipv6:[::1]:5000", "::1"), ("ipv6:%5B2001:db8::1%5D:9", "2001:db8::1")],
)
def test_the_source_address_is_what_grpc_says(peer: str, host: str) -> None:
    assert source_host(peer) == host


@pytest.mark.parametrize("peer", ["unix:/tmp/x", "", "ipv4:example.org:5", "ipv4:1.2.3.4"])
def test_what_is_no_source_address_is_not_dialled(peer: str) -> None:
    with pytest.raises(WireError):
        source_host(peer)


def test_what_stands_in_the_way_is_named(tmp_path: Path, certs: Path) -> None:
    with pytest.raises(Unreachable, match="nothing listens at that port"):
        knock("127.0.0.1:9")
    with (
        serving(tmp_path, tls(certs)(COORDINATOR)) as address,
        pytest.raises(Unreachable, match="does not shake hands as coordinator"),
        connection(address, COORDINATOR, Loopback()) as channel,
    ):
        read_clock(channel)


def test_an_older_coordinator_says_so(tmp_path: Path) -> None:
    loop = LoopThread("old")

    async def start() -> tuple[grpc.aio.Server, str]:
        server = new_server()
        bound = listen(server, HERE, Loopback())
        await server.start()
        return server, bound

    server, address = loop.wait(start())
    with connection(address, COORDINATOR, Loopback()) as channel, pytest.raises(CommsError, match="answers no doctor"):
        read_clock(channel)
    loop.wait(server.stop(None))
    loop.stop()
