"""Who sends too much, something else or nothing is refused by name, or waits for itself alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from comms.agreement import COORDINATOR, CommittedRound, Payload, Report, RoundPlan
from comms.certificates import dns_name
from comms.channel import HANDSHAKE_DEADLINE_S, MOST_MESSAGE_BYTES, listen, new_server
from comms.credentials import read_keys
from comms.errors import Busy, StaleRound, TooLarge, WrongName
from comms.journal import Journal
from comms.limits import Throttle, Turns
from comms.run_state import RunState
from comms.uploads import Uploads
from protos import round_pb2 as pb
from protos import round_pb2_grpc
from tests.comms.members import Member, join_of, rules, transport_of
from tests.comms.strangers import (
    assert_refused,
    assert_still_serves,
    attend,
    call,
    connect,
    coordinator,
    is_hung_up_on,
    proved,
    put,
    refusal,
    status,
    tls,
)

Code = grpc.StatusCode


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
    keys = read_keys(certs, "a")
    credentials = grpc.ssl_channel_credentials(keys.authority, keys.key, keys.certificate)
    options = [("grpc.ssl_target_name_override", dns_name(COORDINATOR)), ("grpc.max_send_message_length", -1)]
    return refusal(lambda: grpc.aio.secure_channel(address, credentials, options=options), work)


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
