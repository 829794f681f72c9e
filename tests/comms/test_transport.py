"""What a `Transport` promises, shown of the real one against a real coordinator."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from comms.address import BadAddress
from comms.agreement import COORDINATOR, Finish, Leave, Payload, Report, RoundPlan
from comms.channel import InsecureAddress, listen, new_server, open_channel
from comms.errors import JournalError, Refused, RunFailed, Unreachable
from comms.journal import Journal
from comms.security import Insecure, Loopback
from comms.store import digest_of
from comms.transport_settings import Route
from protos import round_pb2 as pb
from protos import round_pb2_grpc
from tests.comms.members import (
    CONFIG,
    CORPUS,
    CoordinatorThread,
    Member,
    content_of,
    join_of,
    rules,
    theta_digest,
    transport_of,
)

NOBODY = "127.0.0.1:9"
"""The discard port: nobody answers there."""
ROOT = Path(__file__).parents[2]


@contextmanager
def coordinator(folder: Path, *arguments: object, **keywords: object) -> Iterator[CoordinatorThread]:
    running = CoordinatorThread(folder, *arguments, **keywords)  # type: ignore[arg-type]
    try:
        yield running
    finally:
        running.stop()


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def assert_equal_everywhere(members: list[Member], rounds: int) -> None:
    for member in members:
        assert len(member.applied) == rounds
        assert (member.applied, member.contents) == (members[0].applied, members[0].contents)
        for manifest, contents in zip(member.applied, member.contents, strict=True):
            assert all(digest_of(contents[entry.digest]) == entry.digest for entry in manifest)


@pytest.mark.parametrize("route", ["direct", "relay"])
def test_all_members_get_the_same_contents_in_the_same_order(tmp_path: Path, route: Route) -> None:
    with coordinator(tmp_path, rules("abc"), route=route) as running:
        members = [Member(tmp_path, name, running.address, route=route) for name in "abc"]
        for member in members:
            member.join()
        running.join()
    assert running.error is None
    assert_equal_everywhere(members, rounds=3)
    for number in range(3):
        for member in members:
            plan = member.plans[number]
            assert content_of(member.name, plan, "embed") in members[0].contents[number].values()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["agreed"], row["contributors"]) for row in rows] == [
        (number, True, ["a", "b", "c"]) for number in (1, 2, 3)
    ]


# ---- the coordinator comes and goes ----


class CoordinatorProcess:
    """A coordinator that can be killed as the kernel kills."""

    def __init__(self, folder: Path, replicas: str, address: str = "127.0.0.1:0") -> None:
        command = [sys.executable, "-m", "tests.comms.coordinator_process", str(folder), replicas, address]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the coordinator does not listen"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        code = self._process.wait(30)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


@pytest.mark.parametrize("moment", ["a report is out", "a proposal is acknowledged"])
def test_a_killed_coordinator_goes_on_from_its_journal_and_the_members_come_back(tmp_path: Path, moment: str) -> None:
    reached, go_on = threading.Semaphore(0), threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            reached.release()
            assert go_on.wait(30)

    def say_so(number: int) -> None:
        if number == 2:
            reached.release()

    holding: dict[str, Callable[[int], None]] = (
        {"before_report": hold} if moment == "a report is out" else {"before_acknowledge": hold}
    )
    passing: dict[str, Callable[[int], None]] = dict.fromkeys(holding, say_so)
    first = CoordinatorProcess(tmp_path, "abc")
    members = [
        Member(tmp_path, "a", first.address, **(passing)),  # type: ignore[arg-type]
        Member(tmp_path, "b", first.address, **(passing)),  # type: ignore[arg-type]
        Member(tmp_path, "c", first.address, **(holding)),  # type: ignore[arg-type]
    ]
    for _ in members:
        assert reached.acquire(timeout=30)
    first.kill()
    second = CoordinatorProcess(tmp_path, "abc", first.address)
    go_on.set()
    for member in members:
        member.join()
    assert second.wait() == 0
    assert_equal_everywhere(members, rounds=3)
    for member in members:
        leases = {plan.round: plan.lease for plan in member.plans}
        assert all(plan.lease == leases[plan.round] for plan in member.plans), "one lease a round"
    journal = Journal(tmp_path / "coordinator.sqlite")
    assert [committed.round for committed in journal.history(0)] == [1, 2, 3]
    assert [committed.manifest for committed in journal.history(0)] == members[0].applied
    journal.close()


def test_a_silent_coordinator_that_goes_is_waited_for_from_then_on(tmp_path: Path) -> None:
    outage_deadline_s = 2.0
    run_rules = rules("ab")
    with coordinator(tmp_path, run_rules) as running:
        address = running.address
        with transport_of(tmp_path, "a", address, outage_deadline_s=outage_deadline_s) as a:
            a.join(join_of("a", a))
            busy_s = time.process_time()
            time.sleep(1.25 * outage_deadline_s)  # nothing is said: it waits for b
            assert time.process_time() - busy_s < 0.5, "to wait costs nothing"
            running.stop()
            with coordinator(tmp_path, run_rules, address), transport_of(tmp_path, "b", address) as b:
                b.join(join_of("b", b))
                assert isinstance(a.receive(), RoundPlan)


def test_a_coordinator_that_is_gone_too_long_ends_the_wait(tmp_path: Path) -> None:
    with transport_of(tmp_path, "a", NOBODY, outage_deadline_s=1.0) as a:
        started_s = time.monotonic()
        a.join(join_of("a", a))
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 has not answered for 1 s.*exchange\.outage_deadline_s"):
            a.receive()
        assert 1.0 <= time.monotonic() - started_s < 3.0


def test_a_coordinator_whose_journal_fails_ends_and_does_not_go_on_from_memory(tmp_path: Path) -> None:
    with coordinator(tmp_path, rules("a")) as running:
        with sqlite3.connect(tmp_path / "coordinator.sqlite") as database:
            database.execute("DROP TABLE state")
        database.close()
        with transport_of(tmp_path, "a", running.address) as a:
            a.join(join_of("a", a))
            running.join()
    assert isinstance(running.error, JournalError)


# ---- who is refused ----


def test_a_replica_that_the_run_does_not_know_is_told_so(tmp_path: Path) -> None:
    with coordinator(tmp_path, rules("a")) as running, transport_of(tmp_path, "b", running.address) as b:
        b.join(join_of("b", b))
        with pytest.raises(Refused, match="replica 'b' is none of this run's replicas"):
            b.receive()


def test_a_run_without_its_replicas_fails_within_its_deadline(tmp_path: Path) -> None:
    with coordinator(tmp_path, rules("ab", gather=1.0, liveness=0.9)) as running:
        with transport_of(tmp_path, "a", running.address) as a:
            a.join(join_of("a", a))
            message = a.receive()
        running.join()
    assert isinstance(running.error, RunFailed)
    assert message == Finish(str(running.error))
    assert "exchange.min_replicas = 2" in str(running.error)


def test_what_was_said_before_the_end_is_heard(tmp_path: Path) -> None:
    with coordinator(tmp_path, rules("ab")) as running, transport_of(tmp_path, "b", running.address) as b:
        with transport_of(tmp_path, "a", running.address) as a:
            a.join(join_of("a", a))
            b.join(join_of("b", b))
            assert isinstance(b.receive(), RoundPlan)
            a.send(Leave("has to go"))
        journal = Journal(tmp_path / "coordinator.sqlite")
        state = journal.load(rules("ab"))
        journal.close()
    assert state is not None
    assert state.absent == {"a": "has to go"}


def test_a_digest_that_is_none_is_the_callers_error(tmp_path: Path) -> None:
    with transport_of(tmp_path, "a", NOBODY) as a, pytest.raises(ValueError, match="hex"):
        a.send(Report(1, (Payload("embed", "not hex", 1),), 1, 1.0))


def joined(replica: str = "a") -> pb.MemberMessage:
    digests = [bytes.fromhex(digest) for digest in (CONFIG, CORPUS, theta_digest([]))]
    config, corpus, theta = digests
    join = pb.Join(replica=replica, config_digest=config, corpus_digest=corpus, tokens_per_epoch=1000)
    join.theta_digest = theta
    return pb.MemberMessage(join=join)


def nonsense() -> pb.MemberMessage:
    return pb.MemberMessage(report=pb.Report(round=1, payloads=[pb.Payload(fragment="../x", digest=bytes(32))]))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([nonsense()], "report.fragment"),
        ([pb.MemberMessage(heartbeat=pb.Heartbeat())], "begins with a Join"),
        ([pb.MemberMessage()], "nothing in it"),
        ([], "no Join"),
        ([joined("../a")], "join.replica"),
        ([joined(), nonsense()], "report.fragment"),
        ([joined(), joined()], "second Join"),
    ],
)
def test_nonsense_ends_a_conversation_by_its_name_and_harms_nobody_else(
    tmp_path: Path, messages: list[pb.MemberMessage], complaint: str
) -> None:
    async def speak(address: str) -> grpc.aio.AioRpcError:
        async with open_channel(address, COORDINATOR, Loopback()) as channel:
            call = round_pb2_grpc.RoundsStub(channel).Attend(iter(messages), timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
            return caught.value

    with coordinator(tmp_path, rules("ab", min_replicas=1, rounds=1)) as running:
        error = asyncio.run(speak(running.address))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert complaint in str(error.details())
        members = [Member(tmp_path, name, running.address) for name in "ab"]
        for member in members:
            member.join()


def test_a_replica_that_talks_nonsense_is_told_so_and_does_not_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with coordinator(tmp_path, rules("a")) as running, transport_of(tmp_path, "a", running.address) as a:
        a.join(join_of("a", a))
        plan = a.receive()
        assert isinstance(plan, RoundPlan)
        a.send(Report(1, (Payload("../x", "ab" * 32, 1),), 1, 1.0))
        with pytest.raises(Refused, match=r"does not understand this replica: report\.fragment"):
            a.receive()


# ---- where plain text may go ----


def test_a_port_in_use_is_refused_and_the_journal_beside_it_untouched(tmp_path: Path) -> None:
    with coordinator(tmp_path, rules("a")) as running, pytest.raises(Unreachable, match="port is in use"):
        CoordinatorThread(make(tmp_path / "other"), rules("a"), running.address)
    assert not (tmp_path / "other" / "coordinator.sqlite").exists()


@pytest.mark.parametrize("route", ["direct", "relay"])
def test_plain_text_does_not_leave_this_machine_unasked(tmp_path: Path, route: Route) -> None:
    def dial() -> None:
        with transport_of(tmp_path, "a", "192.0.2.1:1", route) as a:
            a.join(join_of("a", a))
            a.receive()

    with pytest.raises(InsecureAddress, match=r"security\.mode"):
        dial()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_nobody_listens_to_other_machines_unasked(tmp_path: Path, address: str) -> None:
    with pytest.raises(InsecureAddress, match=r"security\.mode"):
        CoordinatorThread(tmp_path, rules("a"), address)


def test_who_says_insecure_may_listen_everywhere() -> None:
    async def bound() -> str:
        server = new_server()
        try:
            return listen(server, "0.0.0.0:0", Insecure())
        finally:
            await server.stop(None)

    host, port = asyncio.run(bound()).split(":")
    assert (host, int(port) > 0) == ("0.0.0.0", True)  # noqa: S104


@pytest.mark.parametrize("address", ["", "localhost", ":1", "localhost:x", "localhost:65536", "localhost:-1"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(BadAddress, match="host:port"):
        open_channel(address, COORDINATOR, Loopback())
