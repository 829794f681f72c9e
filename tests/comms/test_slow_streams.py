"""A stream that crawls ends, whoever crawls; one on a slow link that moves is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from comms.agreement import COORDINATOR
from comms.channel import listen, new_server, open_channel
from comms.ledger import Ledger
from comms.limits import Pace
from comms.payloads import PayloadService
from comms.security import Loopback
from comms.store import PayloadStore, digest_of
from comms.uploads import Uploads
from protos import payload_pb2 as payloads
from protos import payload_pb2_grpc
from tests.comms.strangers import (
    assert_refused,
)

Code = grpc.StatusCode


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
        for _ in range(5):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await payload_pb2_grpc.PayloadsStub(channel).Put(crawl(), timeout=20.0)
            # Where a write meets the end of the stream before its status is read, grpc.aio forgets the status.
            if caught.value.code() is not Code.INTERNAL:
                break
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
