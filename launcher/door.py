"""A way in from the real machine to one port of a simulated one: what connects here comes out there, unlimited."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

CHUNK_BYTES = 65_536


class Door:
    """Listens on the loopback and passes every connection on through `connect`, each way in a thread of its own."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._serve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets nobody in any more, and ends what is open."""
        for open_socket in (self._listener, *self._open):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._let_in(near)

    def _let_in(self, near: socket.socket) -> None:
        try:
            far = self._connect()
        except OSError:
            near.close()
            return
        self._open += (near, far)
        self._start(lambda: _pass_on(near, far))
        self._start(lambda: _pass_on(far, near))

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="door", daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    for done in (source, sink):
        with suppress(OSError):
            done.shutdown(socket.SHUT_RDWR)
