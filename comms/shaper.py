"""A slow network inside our own processes: between gRPC and the sockets of one member.

    gRPC channel -> [forwarder: path, up, latency] ~~ socket ~~ [forwarder: down] -> gRPC server

A channel dials a forwarder on the loopback instead of its peer; a server listens behind one. What they pass on they
do not look into, so TLS goes through untouched. Each member enforces what it sends (the path's rate, its line's up,
latency, jitter, cuts) and what it receives (its line's down); a slow receiver holds its sender up through TCP itself.

Streams that share a rate take turns, a chunk each. So a line is shared max-min fairly: a stream that cannot use its
turns, because its path or its receiver is slower, leaves them to the others.

A forwarder that dials says first who it is. Whoever does not (the launcher, an operator) is no part of the simulation
and is passed on unlimited.

The way through two forwarders takes time itself: threads that must wake up, timers that are late. With t the quickest
of some round trips of a byte through forwarders that delay it by L each way, and t0 through none:

    floor = (t - t0) / 2 - L,    what is asked to take a latency l is delayed by l - floor
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Self

from comms.bucket import SEGMENT_BYTES, Bucket
from comms.fine_timers import fine_loop
from comms.link_plan import LinkPlan, Path, read_simulation

GREETING = b"dist-train simulated link of "
LOOK_EVERY_S = 0.1
"""How soon a member sees that the launcher has changed the links."""
_LONGEST_GREETING_BYTES = len(GREETING) + 128
_TURN_S = 0.004
"""A turn on a line; a heartbeat waits about so long for each busy stream."""
_MOST_SEGMENTS = 44
_SOCKET_BYTES = 128 * 1024
"""Small, so that a slow receiver is felt by its sender and not by a buffer."""
_QUEUED_CHUNKS = 16
_CHUNKS_PER_S = 2000
"""Room for what is under way on a path with latency and without a rate."""
_TRIPS, _TRIP_LATENCY_S, _TRIP_DEADLINE_S = 20, 0.002, 5.0
_NOBODY = "nobody, to time the way"
_log = logging.getLogger(__name__)
_ALREADY = float("-inf")


class Shaper:
    """The forwarders of one member, on a loop in a thread of their own; follows the launcher's file as it changes."""

    def __init__(self, member: str, file: FilePath) -> None:
        """OSError or ValueError when the launcher's file can't be read."""
        self.member = member
        self._file = file
        self._written_ns = file.stat().st_mtime_ns
        self._plan = read_simulation(file).shaped or LinkPlan()
        self._line = _Line(LinkPlan(), member)
        self._paths = dict[str, _PathTo]()
        self._floor_s = 0.0
        self._doors = dict[tuple[str, str], str]()
        self._lock = threading.Lock()
        self._tasks = set[asyncio.Task[None]]()
        self._loop = fine_loop()
        threading.Thread(target=self._loop.run_forever, name="links", daemon=True).start()
        self._floor_s = self._time_the_way()
        _log.info("links: %.2f ms of every latency are the way through this process", 1e3 * self._floor_s)
        self._line.become(self._plan, member)
        self._start(self._follow_file())

    def dial(self, peer: str, address: str) -> str:
        """The address, on the loopback, at which `peer` is reached over the simulated link."""
        with self._lock:
            if (peer, address) not in self._doors:
                listener = _listener("127.0.0.1", 0)
                self._doors[peer, address] = f"127.0.0.1:{listener.getsockname()[1]}"
                self._start(self._accept(listener, lambda near: self._call(near, peer, address)))
            return self._doors[peer, address]

    def expose(self, host: str, port: int, behind_port: int) -> int:
        """Listens at `host` for a server on the loopback; the port, which is any free one for 0. OSError if taken."""
        listener = _listener(host, port)
        self._start(self._accept(listener, lambda far: self._answer(far, behind_port)))
        return int(listener.getsockname()[1])

    def _time_the_way(self) -> float:
        """The floor; 0 when nothing comes through. Blocks for some hundredths of a second."""
        path = _PathTo(Path(latency_s=_TRIP_LATENCY_S))
        self._paths = {_NOBODY: path, self.member: path}  # the one for the way there, the other for the way back
        try:
            with _Echo() as echo:
                direct_s = _quickest_trip_s(echo.port)
                door = self.dial(_NOBODY, f"127.0.0.1:{self.expose('127.0.0.1', 0, echo.port)}")
                through_s = _quickest_trip_s(int(door.rpartition(":")[2]))
        except OSError:
            return 0.0
        finally:
            self._loop.call_soon_threadsafe(self._let_go)
        return max(0.0, (through_s - direct_s) / 2 - _TRIP_LATENCY_S)

    # ---- on the loop's thread ----

    def _let_go(self) -> None:
        """Closes all doors and connections."""
        for task in self._tasks:
            task.cancel()
        self._doors, self._paths = {}, {}

    async def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        with listener:
            while True:
                connection, _ = await self._loop.sock_accept(listener)
                self._keep(asyncio.ensure_future(_closing(connection, serve(connection))))

    async def _call(self, near: socket.socket, peer: str, address: str) -> None:
        """Passes a channel's connection on to the peer."""
        path, back = self._path(peer), self._plan.path(peer, self.member)
        await path.until_open()
        await asyncio.sleep(path.path.latency_s + back.latency_s)  # what TCP's handshake takes
        host, _, port = address.rpartition(":")
        with await _connected(host.strip("[]"), int(port)) as far:
            await self._loop.sock_sendall(far, GREETING + self.member.encode() + b"\n")
            await self._join(near, far, path, b"")

    async def _answer(self, far: socket.socket, behind_port: int) -> None:
        """Passes a peer's connection on to our server."""
        peer, rest = await _greeted(far)
        with await _connected("127.0.0.1", behind_port) as near:
            await self._join(near, far, None if peer is None else self._path(peer), rest)

    async def _join(self, near: socket.socket, far: socket.socket, path: _PathTo | None, rest: bytes) -> None:
        """Carries bytes both ways, `rest` first, until either end has closed or broken."""
        if path is None:
            out, into = _Stream(near, far, ()), _Stream(far, near, ())
        else:
            out = _Stream(near, far, (path.rate, self._line.up), path, self._line.up_chunk_bytes)
            into = _Stream(far, near, (self._line.down,), None, self._line.down_chunk_bytes)
        async with asyncio.TaskGroup() as group:
            group.create_task(out.carry(b""))
            group.create_task(into.carry(rest))

    def _path(self, peer: str) -> _PathTo:
        if peer not in self._paths:
            self._paths[peer] = _PathTo(self._plan.path(self.member, peer), self._floor_s)
        return self._paths[peer]

    async def _follow_file(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with suppress(OSError, ValueError):
                written_ns = self._file.stat().st_mtime_ns
                if written_ns != self._written_ns:
                    self._plan = read_simulation(self._file).shaped or LinkPlan()
                    self._written_ns = written_ns
                    self._line.become(self._plan, self.member)
                    for peer, path in self._paths.items():
                        path.become(self._plan.path(self.member, peer))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.call_soon_threadsafe(lambda: self._keep(self._loop.create_task(work)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Turns:
    """A rate that streams share, a chunk after another in the order in which they ask."""

    def __init__(self, bits_per_second: float | None) -> None:
        self.bucket = Bucket(bits_per_second)
        self._turn = asyncio.Lock()

    async def take(self, num_bytes: int, ready_s: float) -> float:
        """Waits until a chunk that was there at `ready_s` has left; when that was due."""
        if self.bucket.bits_per_second is None:
            return ready_s
        loop = asyncio.get_running_loop()
        async with self._turn:
            left_s = self.bucket.reserve(num_bytes, ready_s, loop.time())
            await _sleep_until(left_s)
        return left_s


class _Line:
    """The member's line."""

    def __init__(self, plan: LinkPlan, member: str) -> None:
        self.up, self.down = _Turns(None), _Turns(None)
        self.become(plan, member)

    def become(self, plan: LinkPlan, member: str) -> None:
        line = plan.line(member)
        self.up.bucket.bits_per_second = line.up_bits_per_second
        self.down.bucket.bits_per_second = line.down_bits_per_second

    def up_chunk_bytes(self) -> int:
        return _chunk_bytes(self.up.bucket.bits_per_second)

    def down_chunk_bytes(self) -> int:
        return _chunk_bytes(self.down.bucket.bits_per_second)


class _PathTo:
    """The way to one peer."""

    def __init__(self, path: Path, floor_s: float = 0.0) -> None:
        self.path = path
        self._floor_s = floor_s
        self.rate = _Turns(path.bits_per_second)
        self._open = asyncio.Event()
        self.become(path)

    def become(self, path: Path) -> None:
        self.path = path
        self.rate.bucket.bits_per_second = path.bits_per_second
        if path.is_cut:
            self._open.clear()
        else:
            self._open.set()

    async def until_open(self) -> None:
        """Waits while the path is cut."""
        await self._open.wait()

    def due_s(self, left_s: float) -> float:
        """When what has left at `left_s` arrives."""
        wanted_s = self.path.latency_s + self.path.jitter_s * random.random()  # noqa: S311 - a jitter, no secret
        return left_s + max(0.0, wanted_s - self._floor_s)


@dataclass
class _Stream:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    rates: tuple[_Turns, ...]
    path: _PathTo | None = None
    chunk_bytes: Callable[[], int] = lambda: SEGMENT_BYTES * _MOST_SEGMENTS
    handed_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def carry(self, first: bytes) -> None:
        """Passes `first` and all that follows on, until the source ends or one of the two breaks."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._arrive(under_way))
                with suppress(OSError):
                    await self._leave(first, under_way)
                await under_way.put((_ALREADY, b""))
        except* OSError:
            pass  # the sink broke: whoever is there notices by itself
        _hang_up(self.sink, self.source)

    async def _leave(self, chunk: bytes, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        ready_s = loop.time()
        if not chunk:
            chunk, ready_s = await self._read(ready_s)
        while chunk:
            if self.path is not None:
                await self.path.until_open()
            left_s = next_ready_s = ready_s
            for position, rate in enumerate(self.rates):
                left_s = await rate.take(len(chunk), left_s)
                next_ready_s = left_s if position == 0 else next_ready_s
            was_full = under_way.qsize() >= self._room_chunks()
            while under_way.qsize() >= self._room_chunks():
                self.handed_over.clear()
                await self.handed_over.wait()
            under_way.put_nowait((left_s if self.path is None else self.path.due_s(left_s), chunk))
            chunk, ready_s = await self._read(loop.time() if was_full else next_ready_s)

    async def _read(self, free_s: float) -> tuple[bytes, float]:
        """The next chunk, and when it was there: when it was asked for, or when it came if it was not there yet."""
        try:
            return self.source.recv(self.chunk_bytes()), free_s
        except BlockingIOError:
            chunk = await asyncio.get_running_loop().sock_recv(self.source, self.chunk_bytes())
            return chunk, asyncio.get_running_loop().time()

    async def _arrive(self, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Hands over what is due, in order."""
        loop = asyncio.get_running_loop()
        while (item := await under_way.get())[1]:
            await _sleep_until(item[0])
            await loop.sock_sendall(self.sink, item[1])
            self.handed_over.set()

    def _room_chunks(self) -> int:
        """What may be under way: what fits on the path now, and a little before it."""
        if self.path is None:
            return _QUEUED_CHUNKS
        limits = [rate.bucket.bits_per_second for rate in self.rates if rate.bucket.bits_per_second is not None]
        chunks_per_s = min(limits) / 8 / self.chunk_bytes() if limits else _CHUNKS_PER_S
        return _QUEUED_CHUNKS + int((self.path.path.latency_s + self.path.path.jitter_s) * chunks_per_s)


def _chunk_bytes(bits_per_second: float | None) -> int:
    """What a turn on a line of that rate is, in whole packets."""
    if bits_per_second is None:
        return SEGMENT_BYTES * _MOST_SEGMENTS
    return SEGMENT_BYTES * max(1, min(_MOST_SEGMENTS, int(bits_per_second * _TURN_S / 8 / SEGMENT_BYTES)))


async def _sleep_until(moment_s: float) -> None:
    left_s = moment_s - asyncio.get_running_loop().time()
    if left_s > 0:
        await asyncio.sleep(left_s)


async def _closing(connection: socket.socket, serving: Awaitable[None]) -> None:
    """Serves a connection and closes it; one that breaks is its ends' business."""
    with connection, suppress(OSError):
        await serving


async def _connected(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    connection = socket.socket(family, kind, protocol)
    try:
        _prepare(connection)
        await loop.sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


async def _greeted(far: socket.socket) -> tuple[str | None, bytes]:
    """Who is calling, and what it has said beyond that; None for somebody outside the simulation."""
    said = b""
    while b"\n" not in said and len(said) < _LONGEST_GREETING_BYTES and GREETING.startswith(said[: len(GREETING)]):
        more = await asyncio.get_running_loop().sock_recv(far, SEGMENT_BYTES)
        if not more:
            return None, said
        said += more
    if not said.startswith(GREETING):
        return None, said
    name, _, rest = said.removeprefix(GREETING).partition(b"\n")
    return name.decode(errors="replace"), rest


class _Echo:
    """A server on the loopback, for one connection at a time, that sends back what it gets."""

    def __enter__(self) -> Self:
        self._listener = _listener("127.0.0.1", 0)
        self._listener.setblocking(True)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, name="echo", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._listener, suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    while said := connection.recv(1):
                        connection.sendall(said)


def _quickest_trip_s(port: int) -> float:
    """Seconds from sending a byte to its return. OSError when it does not."""
    taken_s = []
    with socket.create_connection(("127.0.0.1", port), _TRIP_DEADLINE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_TRIPS):
            begun_s = time.perf_counter()
            connection.sendall(b".")
            if not connection.recv(1):
                raise ConnectionResetError
            taken_s.append(time.perf_counter() - begun_s)
    return min(taken_s)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=512)
    _prepare(listener)
    return listener


def _prepare(connection: socket.socket) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _hang_up(sink: socket.socket, source: socket.socket) -> None:
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    with suppress(OSError):
        source.shutdown(socket.SHUT_RD)
