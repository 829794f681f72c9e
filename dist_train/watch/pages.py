"""A small HTTP server for pages that can only be read: GET, a fixed set of paths, one answer a connection.

Strangers may reach it, so all is bounded: the request's size, the seconds for it and for taking the answer, and the
connections at once. On a loopback address it answers only to a loopback name: a web page elsewhere whose name was made
to point here (DNS rebinding) learns nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus

from comms.address import host_and_port, is_loopback
from comms.errors import Unreachable

MOST_REQUEST_BYTES = 8 * 1024
DEADLINE_S = 5.0
MOST_CONNECTIONS = 32
HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """What is answered."""

    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]
"""Path to what makes its page; called in the server's thread."""


@contextmanager
def serving(address: str, pages: Pages, deadline_s: float = DEADLINE_S) -> Iterator[str]:
    """Answers at `address` while inside; the address with its port. Unreachable when it cannot be had."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="pages", daemon=True)
    thread.start()
    server = _Server(address, pages, deadline_s)
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Server:
    def __init__(self, address: str, pages: Pages, deadline_s: float) -> None:
        self._host, self._port = host_and_port(address)
        self._deadline_s = deadline_s
        self._pages = pages
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listens; the address with its port."""
        try:
            self._server = await asyncio.start_server(
                self._accept, self._host, self._port, limit=MOST_REQUEST_BYTES, backlog=MOST_CONNECTIONS
            )
        except OSError as error:
            raise Unreachable(
                f"cannot serve pages at {self._host}:{self._port} ([watch]): {error.strerror or error}"
            ) from None
        port = self._server.sockets[0].getsockname()[1]
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    async def stop(self) -> None:
        """Hangs up on everybody."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question, one answer; who is too slow for either is hung up on."""
        try:
            async with asyncio.timeout(self._deadline_s):
                try:
                    status, page = self._answer(await reader.readuntil(b"\r\n\r\n"))
                except asyncio.LimitOverrunError:
                    status, page = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, None
                writer.write(_response(status, page))
                await writer.drain()
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def _answer(self, request: bytes) -> tuple[HTTPStatus, Page | None]:
        lines = request.decode("latin-1").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return HTTPStatus.BAD_REQUEST, None
        if method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, None
        named = [line.partition(":")[2].strip() for line in lines[1:] if line.lower().startswith("host:")]
        if is_loopback(self._host) and not (len(named) == 1 and is_loopback(_host_of(named[0]))):
            return HTTPStatus.FORBIDDEN, None
        make = self._pages.get(target.partition("?")[0])
        if make is None:
            return HTTPStatus.NOT_FOUND, None
        try:
            return HTTPStatus.OK, make()
        except Exception:  # noqa: BLE001 - whatever it was, it is the page's, and the server goes on
            _log.exception("a page could not be made: this is a bug in dist-train:")
            return HTTPStatus.INTERNAL_SERVER_ERROR, None


def _host_of(authority: str) -> str:
    """The host of `host:port`, `host` or `[address]:port`."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def _response(status: HTTPStatus, page: Page | None) -> bytes:
    content = page or Page("text/plain; charset=utf-8", f"{status.value} {status.phrase}\n".encode())
    headers = HEADERS | {"Content-Type": content.content_type, "Content-Length": str(len(content.body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{head}\r\n".encode("latin-1") + content.body
