"""Payloads come from whoever has them, and nobody is waited for who is away."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comms.agreement import Entry, Holder, Problem
from comms.coordinator import Coordinator
from comms.grpc_transport import GrpcTransport
from comms.ledger import Ledger
from comms.store import PayloadStore, digest_of
from tests.comms.members import CoordinatorThread, join_of, rules, settings, transport_of

NOBODY = "127.0.0.1:9"
"""The discard port: nobody answers there."""


@contextmanager
def coordinator(folder: Path, replicas: str) -> Iterator[CoordinatorThread]:
    running = CoordinatorThread(folder, rules(replicas))
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def stopped_process() -> Iterator[str]:
    """An address at which a kernel takes connections, as that of a stopped process does; nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        yield f"127.0.0.1:{stopped.getsockname()[1]}"


def test_payloads_of_a_dead_member_come_from_another_that_has_them(tmp_path: Path) -> None:
    with transport_of(tmp_path, "b", NOBODY) as b, transport_of(tmp_path, "c", NOBODY) as c:
        with transport_of(tmp_path, "a", NOBODY) as a:
            payload = a.publish(1, "embed", b"what a found out" * 50_000)
            manifest = (Entry("a", payload.fragment, payload.digest, payload.num_bytes, 130),)
            holders = [Holder("a", a.address), Holder("b", b.address), Holder("c", c.address)]
            [arrival] = b.fetch(1, manifest, holders, committed=False)
            assert arrival.content == b"what a found out" * 50_000
        [arrival] = c.fetch(1, manifest, holders, committed=False)
        assert arrival.content == b"what a found out" * 50_000
    received = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["peer"] for row in received if row["kind"] == "pseudo_gradient"] == ["b"]


def test_an_address_that_may_not_be_dialled_does_not_hide_the_others(tmp_path: Path) -> None:
    with transport_of(tmp_path, "b", NOBODY) as b, transport_of(tmp_path, "c", NOBODY) as c:
        payload = b.publish(1, "embed", b"x")
        manifest = (Entry("a", payload.fragment, payload.digest, payload.num_bytes, 130),)
        [arrival] = c.fetch(1, manifest, [Holder("a", "192.0.2.1:1"), Holder("b", b.address)], committed=False)
        assert arrival.content == b"x"


def test_a_source_that_stands_still_is_given_up_when_the_coordinator_says_that_it_is_away(tmp_path: Path) -> None:
    with (
        coordinator(tmp_path, "abc") as running,
        stopped_process() as address,
        transport_of(tmp_path, "b", running.address) as b,
    ):
        manifest = (Entry("a", "embed", digest_of(b"x"), 1, 130),)
        [arrival] = b.fetch(1, manifest, [Holder("a", address)], committed=False)
    assert isinstance(arrival.content, Problem)
    assert "it is away, and sends nothing" in arrival.content.reason


def test_all_payloads_that_stand_still_are_one_question_to_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their owners live and send nothing, so each of eight transfers wants to know who is there, again and again."""
    asked, status = list[object](), Coordinator.Status

    async def count(self: Coordinator, request: Any, context: Any) -> Any:
        asked.append(request)
        return await status(self, request, context)

    monkeypatch.setattr(Coordinator, "Status", count)
    with ExitStack() as stack:
        running = stack.enter_context(coordinator(tmp_path, "acdex"))
        address = stack.enter_context(stopped_process())
        for owner in "acde":
            transport = stack.enter_context(transport_of(tmp_path, owner, running.address))
            transport.join(join_of(owner, transport))
        manifest = tuple(Entry(owner, f, digest_of(f"{owner}{f}".encode()), 1, 1) for owner in "acde" for f in "fg")
        impatient = replace(settings("x", running.address), fetch_deadline_s=4.0)
        x = GrpcTransport(
            impatient, PayloadStore(tmp_path / "x"), stack.enter_context(Ledger(tmp_path / "x.jsonl", "x"))
        )
        stack.callback(x.close)
        began_s = time.monotonic()
        arrivals = list(x.fetch(1, manifest, [Holder(owner, address) for owner in "acde"], committed=False))
        took_s = time.monotonic() - began_s
    assert {arrival.entry for arrival in arrivals} == set(manifest)
    assert all(isinstance(arrival.content, Problem) for arrival in arrivals)
    assert 2 <= len(asked) <= took_s / impatient.heartbeat_s + 1, "an answer counts for a heartbeat, for all who ask"
