"""Contract: the pages answer what they are there for, and no request, however it is made, does or holds anything."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest

from comms.errors import Unreachable
from dist_train.watch.pages import HEADERS, MOST_CONNECTIONS, MOST_REQUEST_BYTES, Page, serving

BODY = b"it goes well"


@pytest.fixture
def address() -> Iterator[str]:
    with serving("127.0.0.1:0", {"/": lambda: Page("text/plain", BODY)}, deadline_s=1.0) as bound:
        yield bound


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(address: str, request: bytes) -> bytes:
    """All that comes back until the server hangs up."""
    with connected(address) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def get(path: str = "/", host: str = "localhost", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def test_a_page_comes_with_headers_that_let_it_do_nothing(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/?any=query", timeout=20) as reply:
        assert reply.read() == BODY
        assert HEADERS.items() <= dict(reply.headers).items()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/nowhere"), 404),
        (get("/../../etc/passwd"), 404),
        (get(method="POST"), 405),
        (get(method="DELETE"), 405),
        (get(host="rebound.example"), 403),
        (get(host="127.0.0.1.rebound.example"), 403),
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: rebound.example\r\n\r\n", 403),
        (b"GET /\r\n\r\n", 400),
        (b"\xff\x00\x80\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * MOST_REQUEST_BYTES + b"\r\n\r\n", 431),
    ],
)
def test_anything_else_is_refused(address: str, request_bytes: bytes, status: int) -> None:
    assert answer(address, request_bytes).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9390", "[::1]:9390", "[::1]"])
def test_loopback_names_are_let_in(address: str, host: str) -> None:
    assert answer(address, get(host=host)).endswith(BODY)


def test_who_says_nothing_is_hung_up_on(address: str) -> None:
    with connected(address) as connection:
        connection.sendall(b"GET / HT")
        assert connection.recv(100) == b""


def test_more_than_so_many_at_once_are_turned_away_and_the_server_goes_on(address: str) -> None:
    silent = [connected(address) for _ in range(MOST_CONNECTIONS)]
    with connected(address) as one_more, suppress(ConnectionResetError):
        assert one_more.recv(100) == b""
    for connection in silent:
        connection.close()
    while not answer_or_nothing(address).endswith(BODY):
        pass


def answer_or_nothing(address: str) -> bytes:
    try:
        return answer(address, get())
    except OSError:
        return b""


def test_a_page_that_fails_costs_its_own_answer_only() -> None:
    def broken() -> Page:
        raise ZeroDivisionError

    with serving("127.0.0.1:0", {"/": lambda: Page("text/plain", BODY), "/broken": broken}) as address:
        assert answer(address, get("/broken")).startswith(b"HTTP/1.1 500 ")
        assert answer(address, get()).endswith(BODY)


def test_a_port_in_use_is_said_in_one_line(address: str) -> None:
    with pytest.raises(Unreachable, match=r"\[watch\]"), serving(address, {}):
        pass
