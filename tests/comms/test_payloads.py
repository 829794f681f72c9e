"""Payloads over real gRPC on this machine: whole, resumed, counted; and what becomes of a peer that lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from comms.channel import listen, new_server, open_channel
from comms.ledger import Ledger
from comms.payloads import CHUNK_BYTES, MOST_PAYLOAD_BYTES, Parcel, PayloadClient, PayloadService, stream_bytes
from comms.security import Loopback
from comms.store import PayloadStore, digest_of
from comms.uploads import Uploads
from comms.wire import WireError
from protos import payload_pb2 as pb
from protos import payload_pb2_grpc as pb_grpc

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * 2**20]
Work = Callable[[grpc.aio.Channel, PayloadClient], Awaitable[None]]


def payload_of(num_bytes: int) -> bytes:
    return (b"every byte counts; " * (num_bytes // 19 + 1))[:num_bytes]


def parcel_of(payload: bytes) -> Parcel:
    return Parcel(digest_of(payload), len(payload), 7, "b", fragment="layer.3")


def with_peer(folder: Path, service: pb_grpc.PayloadsServicer, work: Work) -> None:
    """Runs `work` against a server with `service`; the client's ledger is `b.jsonl`."""

    async def run() -> None:
        server = new_server()
        pb_grpc.add_PayloadsServicer_to_server(service, server)
        address = listen(server, "127.0.0.1:0", Loopback())
        await server.start()
        with Ledger(folder / "b.jsonl", "b") as ledger:
            async with open_channel(address, "a", Loopback()) as channel:
                await work(channel, PayloadClient(channel, "a", ledger))
        await server.stop(None)

    asyncio.run(run())


def with_store(folder: Path, work: Work, *, accepts_puts: bool = True) -> PayloadStore:
    """Runs `work` against a service whose ledger is `a.jsonl`; returns its store."""
    store, uploads = PayloadStore(folder / "a"), Uploads(lambda: ("b",), 2**30, lambda: 7)
    with Ledger(folder / "a.jsonl", "a") as ledger:
        with_peer(folder, PayloadService(store, ledger, uploads if accepts_puts else None), work)
    return store


def rows(path: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in every if row["kind"] == kind]


def assert_ledgers_agree(folder: Path, sender: str, expected_bytes: int) -> None:
    """Both ends have one row of the payload, with the same bytes; and none if there was nothing to send."""
    receiver = "ab"[sender == "a"]
    both = [rows(folder / f"{name}.jsonl", "pseudo_gradient") for name in (sender, receiver)]
    if not expected_bytes:
        assert both == [[], []]
        return
    [[sent], [received]] = both
    assert (sent["direction"], sent["peer"], sent["round"]) == ("sent", receiver, 7)
    assert (received["direction"], received["peer"], received["round"]) == ("received", sender, 7)
    assert sent["bytes"] == received["bytes"] == expected_bytes


@pytest.mark.parametrize("num_bytes", SIZES)
def test_a_payload_that_is_got_arrives_and_both_ends_count_what_was_predicted(tmp_path: Path, num_bytes: int) -> None:
    payload, received = payload_of(num_bytes), bytearray()
    PayloadStore(tmp_path / "a").put(payload)

    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        await client.get(parcel_of(payload), received, 20.0)

    with_store(tmp_path, get)
    assert received == payload
    assert_ledgers_agree(tmp_path, "a", stream_bytes(num_bytes))


@pytest.mark.parametrize("num_bytes", SIZES)
def test_a_payload_that_is_put_arrives_and_both_ends_count_what_was_predicted(tmp_path: Path, num_bytes: int) -> None:
    payload = payload_of(num_bytes)

    async def put(_: grpc.aio.Channel, client: PayloadClient) -> None:
        await client.put(parcel_of(payload), payload, 20.0)

    assert with_store(tmp_path, put).get(digest_of(payload)) == payload
    assert_ledgers_agree(tmp_path, "b", stream_bytes(num_bytes, "put"))


def test_both_ends_count_what_they_say_beside_the_payload(tmp_path: Path) -> None:
    async def put_and_get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        await client.put(parcel_of(b"x"), b"x", 20.0)
        await client.get(parcel_of(b"x"), bytearray(), 20.0)

    with_store(tmp_path, put_and_get)
    sums = {
        name: {row["direction"]: row["bytes"] for row in rows(tmp_path / f"{name}.jsonl", "control")} for name in "ab"
    }
    assert sums["a"]["received"] == sums["b"]["sent"] > 0
    assert sums["a"]["sent"] == sums["b"]["received"] > 0


@pytest.mark.parametrize("offset", [1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5, 3 * 2**20])
def test_a_stream_that_broke_goes_on_where_it_stopped(tmp_path: Path, offset: int) -> None:
    payload = payload_of(3 * 2**20)
    received = bytearray(payload[:offset])
    PayloadStore(tmp_path / "a").put(payload)

    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        await client.get(parcel_of(payload), received, 20.0)

    with_store(tmp_path, get)
    assert received == payload
    assert_ledgers_agree(tmp_path, "a", stream_bytes(len(payload) - offset))


def test_a_small_payload_is_read_once_for_all_who_ask_for_it_and_no_more_than_16_mib_are_kept(tmp_path: Path) -> None:
    payloads = [bytes([number]) * 2**20 for number in range(17)]
    store = PayloadStore(tmp_path / "a")
    for payload in payloads:
        store.put(payload)

    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        for payload in payloads:
            await client.get(parcel_of(payload), bytearray(), 20.0)
        for payload in payloads:
            store.forget(digest_of(payload))
        for payload in payloads[1:]:
            received = bytearray()
            await client.get(parcel_of(payload), received, 20.0)
            assert received == payload
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.get(parcel_of(payloads[0]), bytearray(), 20.0)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    with_store(tmp_path, get)


def test_what_a_peer_does_not_hold_is_not_found(tmp_path: Path) -> None:
    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.get(parcel_of(b"x"), bytearray(), 20.0)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    with_store(tmp_path, get)


def test_a_torn_file_is_not_handed_out(tmp_path: Path) -> None:
    digest = PayloadStore(tmp_path / "a").put(b"whole")
    (tmp_path / "a" / digest).write_bytes(b"who")

    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.get(parcel_of(b"whole"), bytearray(), 20.0)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    with_store(tmp_path, get)


def test_who_relays_nothing_takes_nothing(tmp_path: Path) -> None:
    async def put(_: grpc.aio.Channel, client: PayloadClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match=r"exchange\.route") as caught:
            await client.put(parcel_of(b"x"), b"x", 20.0)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    assert with_store(tmp_path, put, accepts_puts=False).get(digest_of(b"x")) is None


# ---- peers that lie ----


class Liar(pb_grpc.PayloadsServicer):
    """Serves what it was told to, whatever was asked for."""

    def __init__(self, *chunks: bytes, then: grpc.StatusCode | None = None) -> None:
        self._chunks = chunks
        self._then = then

    async def Get(
        self, request: pb.GetRequest, context: grpc.aio.ServicerContext[pb.GetRequest, pb.Chunk]
    ) -> AsyncIterator[pb.Chunk]:
        del request
        for chunk in self._chunks:
            yield pb.Chunk(data=chunk)
        if self._then is not None:
            await context.abort(self._then, "I have better things to do")

    async def Put(
        self,
        request_iterator: AsyncIterator[pb.PutRequest],
        context: grpc.aio.ServicerContext[pb.PutRequest, pb.PutReply],
    ) -> pb.PutReply:
        del request_iterator, context
        return pb.PutReply()


@pytest.mark.parametrize(
    ("chunks", "complaint"),
    [
        ([b"other"], "a sent other bytes than"),
        ([b"tru"], "a sent other bytes than"),
        ([], "a sent other bytes than"),
        ([b"truth", b"!"], "a sends more than the announced 5 bytes"),
        ([b"x" * 2**20] * 100, "a sends more than the announced 5 bytes"),
    ],
)
def test_other_bytes_than_were_asked_for_are_refused_and_nothing_of_them_is_kept(
    tmp_path: Path, chunks: list[bytes], complaint: str
) -> None:
    received = bytearray()

    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        with pytest.raises(WireError, match=complaint):
            await client.get(parcel_of(b"truth"), received, 20.0)

    with_peer(tmp_path, Liar(*chunks), get)
    assert received == b""


def test_what_came_before_a_stream_broke_is_kept_and_counted(tmp_path: Path) -> None:
    received = bytearray()

    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="better things"):
            await client.get(parcel_of(b"truth"), received, 20.0)

    with_peer(tmp_path, Liar(b"tru", then=grpc.StatusCode.UNAVAILABLE), get)
    assert received == b"tru"
    assert [row["bytes"] for row in rows(tmp_path / "b.jsonl", "pseudo_gradient")] == [stream_bytes(3)]


def test_a_message_above_the_limit_is_refused(tmp_path: Path) -> None:
    async def get(_: grpc.aio.Channel, client: PayloadClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.get(Parcel("00" * 32, 10 * 2**20, 7, "b"), bytearray(), 20.0)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    with_peer(tmp_path, Liar(b"x" * 5 * 2**20), get)


def header(**fields: Any) -> pb.PutRequest:
    sound: dict[str, Any] = {
        "digest": bytes.fromhex(digest_of(b"truth")), "num_bytes": 5, "replica": "b", "round": 7,
        "kind": "pseudo_gradient",
    }  # fmt: skip
    return pb.PutRequest(header=pb.PutHeader(**(sound | fields)))


def chunk(data: bytes) -> pb.PutRequest:
    return pb.PutRequest(chunk=pb.Chunk(data=data))


BAD, LOST = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize(
    ("requests", "code", "complaint"),
    [
        ([], BAD, "empty stream"),
        ([chunk(b"truth")], BAD, "put.digest"),
        ([header(digest=b"short")], BAD, "put.digest"),
        ([header(replica="../b")], BAD, "put.replica"),
        ([header(kind="gossip")], BAD, "kind = 'gossip'"),
        ([header(num_bytes=MOST_PAYLOAD_BYTES + 1)], BAD, "put.num_bytes"),
        ([header(), chunk(b"other")], LOST, "not what its digest says"),
        ([header(), chunk(b"tru")], LOST, "not what its digest says"),
        ([header(), chunk(b"truth"), chunk(b"!")], LOST, "not what its digest says"),
        ([header(num_bytes=4), chunk(b"truth")], LOST, "not what its digest says"),
        ([header(), header(), chunk(b"other")], LOST, "not what its digest says"),
    ],
)
def test_a_put_that_is_not_what_it_says_is_refused_by_name_and_not_kept(
    tmp_path: Path, requests: list[pb.PutRequest], code: grpc.StatusCode, complaint: str
) -> None:
    async def put(channel: grpc.aio.Channel, _: PayloadClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.PayloadsStub(channel).Put(iter(requests), timeout=20.0)
        assert caught.value.code() is code
        assert complaint in str(caught.value.details())

    assert list((tmp_path / "a").iterdir() if with_store(tmp_path, put) else []) == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"digest": b"short"}, "get.digest"),
        ({"replica": "../b"}, "get.replica"),
        ({"kind": "gossip"}, "kind = 'gossip'"),
    ],
)
def test_a_get_that_means_nothing_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], complaint: str) -> None:
    sound: dict[str, Any] = {"digest": bytes(32), "replica": "b", "kind": "pseudo_gradient"}

    async def get(channel: grpc.aio.Channel, client: PayloadClient) -> None:
        del client
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in pb_grpc.PayloadsStub(channel).Get(pb.GetRequest(**(sound | fields)), timeout=20.0):
                pass
        assert caught.value.code() is BAD
        assert complaint in str(caught.value.details())

    with_store(tmp_path, get)


def test_an_offset_behind_the_end_gives_nothing(tmp_path: Path) -> None:
    digest = PayloadStore(tmp_path / "a").put(b"truth")

    async def get(channel: grpc.aio.Channel, _: PayloadClient) -> None:
        request = pb.GetRequest(
            digest=bytes.fromhex(digest), offset=2**63, replica="b", kind="pseudo_gradient", round=7
        )
        assert [part async for part in pb_grpc.PayloadsStub(channel).Get(request, timeout=20.0)] == []

    with_store(tmp_path, get)
