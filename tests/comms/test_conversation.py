"""What is said to the coordinator arrives, and whoever waits for its word gets it or an error: whatever breaks."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from comms import failpoints
from comms.agreement import (
    Acknowledge,
    Applied,
    CommittedRound,
    Entry,
    Finish,
    Holder,
    Offer,
    Payload,
    Proposal,
    Report,
    RoundPlan,
    SnapshotSource,
)
from comms.errors import CommsError, Unreachable
from comms.grpc_transport import GrpcTransport
from comms.store import digest_of
from tests.comms.members import CoordinatorThread, Member, content_of, join_of, rules, transport_of

ENDS = (("a", "sent"), ("coordinator", "received"))
NOBODY = "127.0.0.1:9"
"""The discard port: nobody answers there."""


@contextmanager
def coordinator(folder: Path, *arguments: Any) -> Iterator[CoordinatorThread]:
    running = CoordinatorThread(folder, *arguments)
    try:
        yield running
    finally:
        running.stop()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def counted(ledger: Path, direction: str) -> int:
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    return sum(row["bytes"] for row in rows if row["kind"] == "control" and row["direction"] == direction)


# ---- the stream breaks ----


@pytest.mark.parametrize("point", ["saying-acknowledge", "saying-applied"])
def test_what_was_on_its_way_when_the_stream_broke_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Taken from what is to be said and counted; then every connection breaks, and nobody has heard it.

    A round without an acknowledgement leaves its replica out; one without what became of it lacks a validation loss.
    """
    fired = tmp_path / "fired"
    monkeypatch.setenv("DIST_TRAIN_FAILPOINTS_LOG", str(fired))
    failpoints.arm(f"{point}@2=cut")
    with coordinator(tmp_path, rules("ab")) as running:
        members = [Member(tmp_path, name, running.address) for name in "ab"]
        for member in members:
            member.join()
        running.join()
    assert fired.read_text().split()[:3] == [point, "2", "cut"], "the fault did not fire"
    said = [(row["contributors"], row["absent"], row["validation_loss"]) for row in metrics(tmp_path)]
    assert said == [(["a", "b"], [], 2.5)] * 3


def test_what_is_said_while_there_is_no_stream_arrives_with_the_next_one(tmp_path: Path) -> None:
    with (
        coordinator(tmp_path, rules("a", rounds=1)) as running,
        transport_of(tmp_path, "a", running.address) as a,
    ):
        a.join(join_of("a", a))
        plan = a.receive()
        assert isinstance(plan, RoundPlan)
        running.stop()
        payload = a.publish(1, "embed", content_of("a", plan, "embed"))
        a.send(Report(1, (payload,), 130, 2.0))
        with coordinator(tmp_path, rules("a", rounds=1), running.address):
            while isinstance(message := a.receive(), RoundPlan):
                assert message == plan
    assert isinstance(message, Proposal)
    assert [entry.digest for entry in message.manifest] == [payload.digest]


def test_both_ends_count_the_same_bytes_however_late_something_is_said(tmp_path: Path) -> None:
    """A snapshot is offered when it has been read through: that may be while the last word is on its way."""
    over = threading.Event()
    digest = digest_of(b"snapshot")

    def chatter(a: GrpcTransport) -> None:
        while not over.wait(0.002):
            a.send(Offer(0, digest, digest, 9))

    for attempt in range(5):
        over.clear()
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with coordinator(folder, rules("a", rounds=1)) as running:
            with transport_of(folder, "a", running.address) as a:
                a.join(join_of("a", a))
                plan = a.receive()
                assert isinstance(plan, RoundPlan)
                a.send(Report(1, (a.publish(1, "embed", content_of("a", plan, "embed")),), 130, 2.0))
                proposal = a.receive()
                assert isinstance(proposal, Proposal)
                talking = threading.Thread(target=chatter, args=(a,))
                talking.start()
                a.send(Acknowledge(1, proposal.attempt))
                assert isinstance(a.receive(), CommittedRound)
                a.send(Applied(1, digest))
                assert a.receive() == Finish("")
                over.set()
                talking.join()
            running.join()
        sent, received = (counted(folder / f"{end}.jsonl", what) for end, what in ENDS)
        assert sent == received > 0


# ---- the coordinator, or our own thread, does not answer ----


def test_a_coordinator_that_is_connected_and_hangs_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """Its gRPC goes on to answer pings, so that no connection breaks; only its word does not come."""
    release = threading.Event()
    with (
        coordinator(tmp_path, rules("ab")) as running,
        transport_of(tmp_path, "a", running.address, outage_deadline_s=2.0) as a,
    ):
        a.join(join_of("a", a))
        with transport_of(tmp_path, "b", running.address) as b:
            b.join(join_of("b", b))
            assert isinstance(a.receive(), RoundPlan)
            running._loop.call_soon_threadsafe(release.wait)
            try:
                with pytest.raises(
                    Unreachable, match=r"has said nothing for 2 s and does not answer.*exchange\.outage_deadline_s"
                ):
                    a.receive()
            finally:
                release.set()


def test_a_coordinator_that_answers_and_has_nothing_to_say_is_waited_for(tmp_path: Path) -> None:
    with (
        coordinator(tmp_path, rules("ab", min_replicas=1, rounds=1, gather=2.0)) as running,
        transport_of(tmp_path, "a", running.address, outage_deadline_s=0.5) as a,
    ):
        a.join(join_of("a", a))
        assert isinstance(a.receive(), RoundPlan), "it has waited for b, in vain, for several outage deadlines"


def test_a_search_for_the_coordinator_that_hangs_is_not_waited_for_without_end(tmp_path: Path) -> None:
    release = threading.Event()

    def hangs() -> None:
        release.wait(60)

    with transport_of(tmp_path, "a", NOBODY, outage_deadline_s=1.0, whereabouts=hangs) as a:
        try:
            a.join(join_of("a", a))
            with pytest.raises(Unreachable, match="has not answered for 1 s"):
                a.receive()
        finally:
            release.set()


MANIFEST = (Entry("b", "embed", digest_of(b"x"), 1, 130),)
OFFER = Offer(7, "ab" * 32, digest_of(b"index"), 5)
WAITS: dict[str, Callable[[GrpcTransport, Path], object]] = {
    "receive": lambda transport, _: transport.receive(),
    "fetch": lambda transport, _: list(transport.fetch(1, MANIFEST, [Holder("b", NOBODY)], committed=True)),
    "history": lambda transport, _: transport.history(0),
    "finish_publishing": lambda transport, _: transport.finish_publishing(),
    "fetch_snapshot": lambda transport, folder: transport.fetch_snapshot(
        SnapshotSource(OFFER, (Holder("b", NOBODY),)), folder / "snapshot", 100
    ),
}


@pytest.mark.parametrize("wait", WAITS)
def test_who_waits_when_the_network_thread_dies_is_told_so(tmp_path: Path, wait: str) -> None:
    with transport_of(tmp_path, "a", NOBODY, "relay") as a:
        a.join(join_of("a", a))
        a.publish(1, "embed", b"x")
        a._loop.call(lambda: sys.exit(3))
        with pytest.raises(CommsError, match=r"the network of a: its thread died of SystemExit\(3\)"):
            WAITS[wait](a, tmp_path)


@pytest.mark.parametrize("wait", WAITS)
def test_who_waits_for_a_network_thread_that_stands_still_is_told_so(tmp_path: Path, wait: str) -> None:
    release = threading.Event()
    with transport_of(tmp_path, "a", NOBODY, "relay", outage_deadline_s=1.0) as a:
        a.join(join_of("a", a))
        a.publish(1, "embed", b"x")
        a._loop.call(release.wait)
        try:
            with pytest.raises(CommsError, match=r"the network of a: .* not answered for 1 s.*outage_deadline_s"):
                WAITS[wait](a, tmp_path)
        finally:
            release.set()


def test_there_is_nothing_to_hear_before_the_beginning_and_after_the_end(tmp_path: Path) -> None:
    with coordinator(tmp_path, rules("a", rounds=1)) as running, transport_of(tmp_path, "a", running.address) as a:
        with pytest.raises(CommsError, match="has not begun"):
            a.receive()
        a.join(join_of("a", a))
        assert isinstance(a.receive(), RoundPlan)
        a.close()
        with pytest.raises(CommsError):
            a.receive()


def test_what_cannot_be_said_is_the_callers_error_at_once(tmp_path: Path) -> None:
    with transport_of(tmp_path, "a", NOBODY) as a, pytest.raises(ValueError, match="hex"):
        a.send(Report(1, (Payload("embed", "not hex", 1),), 1, 1.0))
