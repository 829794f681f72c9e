"""Many machines on one, in the kernel: who reaches whom, what is cut, and no way out. Needs Linux and root."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comms.bucket import wire_bytes
from comms.link_plan import Line, LinkPlan
from comms.link_plan import Path as Way
from launcher.door import Door
from launcher.namespaces import OWN, Namespace

if TYPE_CHECKING:
    from launcher.star import Star

PATIENCE_S = 30.0
CONTENT = os.urandom(400_000)


@pytest.fixture
def may_make_namespaces() -> None:
    try:
        Namespace().close()
    except OSError as error:
        pytest.skip(f"the kernel lets us make no network namespaces: {error}")


@pytest.fixture
def star(may_make_namespaces: None) -> Iterator[Star]:
    from launcher.star import Star  # noqa: PLC0415 - pyroute2, which is there on Linux only

    with Star(("coordinator", "a", "b")) as star:
        yield star


def serve(star: Star, member: str, content: bytes) -> int:
    """A server of `member` that gives everybody `content`; its port."""
    with star.entered(member):
        listener = socket.create_server((star.addresses[member], 0))

    def work() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(content)

    threading.Thread(target=work, daemon=True).start()
    return int(listener.getsockname()[1])


def get(star: Star, member: str, address: tuple[str, int], timeout_s: float = PATIENCE_S) -> bytes:
    with star.entered(member):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(timeout_s)
        connection.connect(address)
        received = bytearray()
        while data := connection.recv(65_536):
            received += data
    return bytes(received)


def test_rates_and_cuts_come_and_go_while_members_talk(star: Star) -> None:
    at = (star.addresses["a"], serve(star, "a", CONTENT))
    become = star.become
    least_s = 8 * (wire_bytes(len(CONTENT)) - 100_000) / 5e6  # but what queues hold when the last byte was let through
    for plan in (
        LinkPlan(lines={"a": Line(up_bits_per_second=5e6)}),
        LinkPlan(lines={"b": Line(down_bits_per_second=5e6)}),
        LinkPlan(paths={"a": {"b": Way(5e6)}}),
    ):
        become(plan)
        begun_s = time.monotonic()
        assert get(star, "b", at) == CONTENT
        assert time.monotonic() - begun_s >= least_s, plan
    become(LinkPlan(paths={"a": {"b": Way(is_cut=True)}}))
    with pytest.raises(TimeoutError):
        get(star, "b", at, timeout_s=0.3)
    assert get(star, "coordinator", at) == CONTENT, "only one path is cut"
    become(LinkPlan())
    assert get(star, "b", at) == CONTENT


def test_no_way_leads_out_and_only_a_door_leads_in(star: Star) -> None:
    port = serve(star, "a", CONTENT)
    with socket.create_server(("127.0.0.1", 0)) as outside:
        for address in (outside.getsockname(), ("192.0.2.1", 9)):
            with pytest.raises(OSError, match="refused|unreachable"):
                get(star, "b", address)
    with Door(lambda: star.connect("a", port)) as door:
        host, _, door_port = door.address.rpartition(":")
        received = bytearray()
        with socket.create_connection((host, int(door_port)), PATIENCE_S) as connection:
            while data := connection.recv(65_536):
                received += data
    assert bytes(received) == CONTENT


def test_a_thread_comes_back_from_where_it_was(may_make_namespaces: None) -> None:
    before = Path(OWN).readlink()
    namespace = Namespace()
    with namespace.entered():
        assert Path(OWN).readlink() != before
    namespace.close()
    assert Path(OWN).readlink() == before
