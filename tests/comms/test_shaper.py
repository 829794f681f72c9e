"""The in-process network with real sockets: what goes in comes out, never sooner than the limits allow."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from comms.bucket import wire_bytes
from comms.link_plan import Line, LinkPlan, Simulation, read_simulation
from comms.link_plan import Path as Way
from comms.shaper import Shaper

PATIENCE_S = 30.0


def write(file: Path, plan: LinkPlan) -> None:
    content = Simulation(plan, "token-bucket", "in-process", shaped=plan).to_json()
    beside = file.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(file)


class Pair:
    """Member `b`, which answers what it gets, behind its shaper; and `a`, which dials it through its own."""

    def __init__(self, folder: Path, plan: LinkPlan, answer: Callable[[socket.socket], None]) -> None:
        self.file = folder / "simulation.json"
        write(self.file, plan)
        self.a, self.b = Shaper("a", self.file), Shaper("b", self.file)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()
        self.port = self.b.expose("127.0.0.1", 0, self._server.getsockname()[1])

    def dial(self) -> socket.socket:
        host, _, port = self.a.dial("b", f"127.0.0.1:{self.port}").rpartition(":")
        connection = socket.create_connection((host, int(port)), PATIENCE_S)
        connection.settimeout(PATIENCE_S)
        return connection

    def _serve(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65_536):
            connection.sendall(data)


def through(connection: socket.socket, content: bytes) -> bytes:
    """`content` sent, and what comes back until the other end is done too."""

    def send() -> None:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = bytearray()
    while data := connection.recv(65_536):
        received += data
    sender.join(PATIENCE_S)
    return bytes(received)


def test_bytes_arrive_whole_in_order_and_no_sooner_than_each_line_allows(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    lines = {"a": Line(up_bits_per_second=8e6), "b": Line(up_bits_per_second=6e6, down_bits_per_second=8e7)}
    pair = Pair(tmp_path, LinkPlan(lines=lines), echo)
    begun_s = time.monotonic()
    with pair.dial() as connection:
        assert through(connection, content) == content
    assert time.monotonic() - begun_s >= 8 * wire_bytes(len(content)) / 6e6


def test_connections_share_one_line(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    pair = Pair(tmp_path, LinkPlan(lines={"a": Line(up_bits_per_second=8e6)}), echo)
    begun_s, answers = time.monotonic(), list[bytes]()

    def one() -> None:
        with pair.dial() as connection:
            answers.append(through(connection, content))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [content] * 3
    assert time.monotonic() - begun_s >= 3 * 8 * len(content) / 8e6


def test_an_answer_takes_both_latencies(tmp_path: Path) -> None:
    paths = {"a": {"b": Way(latency_s=0.03)}, "b": {"a": Way(latency_s=0.05, jitter_s=0.01)}}
    pair = Pair(tmp_path, LinkPlan(paths=paths), echo)
    with pair.dial() as connection:
        for _ in range(3):
            begun_s = time.monotonic()
            connection.sendall(b"ping")
            assert connection.recv(16) == b"ping"
            assert time.monotonic() - begun_s >= 0.08


def test_nothing_gets_through_a_cut_and_all_of_it_afterwards(tmp_path: Path) -> None:
    pair = Pair(tmp_path, LinkPlan(), echo)
    with pair.dial() as connection:
        connection.sendall(b"before")
        assert connection.recv(16) == b"before"
        write(pair.file, LinkPlan(paths={"a": {"b": Way(is_cut=True)}}))
        # The moment at which the member has seen the file.
        while not pair.a._paths["b"].path.is_cut:
            time.sleep(0.01)
        connection.sendall(b"during")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(16)
        write(pair.file, LinkPlan())
        connection.settimeout(PATIENCE_S)
        assert connection.recv(16) == b"during"


def test_who_says_no_name_is_passed_on_unlimited(tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    pair = Pair(tmp_path, LinkPlan(lines={"b": Line(8e3, 8e3)}), echo)  # it would take half an hour
    with socket.create_connection(("127.0.0.1", pair.port), PATIENCE_S) as connection:
        assert through(connection, content) == content


def test_a_dead_peer_ends_the_connection(tmp_path: Path) -> None:
    pair = Pair(tmp_path, LinkPlan(), lambda connection: connection.close())
    with pair.dial() as connection:
        connection.sendall(b"anybody?")
        with suppress(ConnectionResetError):
            assert connection.recv(16) == b""


def test_a_simulation_survives_its_file(tmp_path: Path) -> None:
    plan = LinkPlan({"a": Line(1e6, None)}, {"a": {"b": Way(5e6, 0.04, 0.002, is_cut=True)}})
    told = replace(Simulation(plan, "kernel", "in-process", "198.18.0.0/16"), shaped=plan.only_latency())
    (tmp_path / "s.json").write_bytes(told.to_json())
    assert read_simulation(tmp_path / "s.json") == told
