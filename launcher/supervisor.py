"""Child processes as a stream of events: who announced what, who ended how, which signal came. Knows no training.

Every child leads its own session, so that a Ctrl-C in the terminal reaches the launcher alone, which then ends the
children in its own order; and so that a child's own children can be ended with it. Waiting is left to one thread a
child, which blocks in the kernel: nothing here polls.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import FrameType, TracebackType
    from typing import Self

READY_OPTION = "--ready-fd"
# What the kernel needs to end a process that cannot refuse; more only when it hangs in a dead file system.
KILL_S = 10.0


@dataclass(frozen=True)
class Command:
    """One process to be started."""

    member: str
    arguments: tuple[str, ...]
    log: Path
    """Where its stdout and stderr are appended."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside what the launcher's own environment holds."""
    announces: bool = False
    """Gets `--ready-fd N`, and writes one line there when it is ready."""
    kept_descriptors: tuple[int, ...] = ()
    beat_s: float | None = None
    """It stands for a process on another machine, which must read a byte from its stdin so often; EOF ends it."""


@dataclass(frozen=True)
class Announced:
    """A child wrote its line."""

    member: str
    text: str


@dataclass(frozen=True)
class Exited:
    """A child ended: its exit code, or minus the signal that killed it."""

    member: str
    code: int


@dataclass(frozen=True)
class Interrupted:
    """The launcher itself was told to end."""

    signal_number: int


@dataclass(frozen=True)
class Told:
    """Somebody outside, such as a poller, has news."""

    news: object


Event = Announced | Exited | Interrupted | Told


class Supervisor:
    """Starts children and hears of them; leaving the `with` block ends and reaps all that are left."""

    def __init__(self, grace_s: float = 10.0) -> None:
        self.grace_s = grace_s
        self.exits: dict[str, int] = {}
        """Who has ended, by the events that were taken."""
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._far: set[str] = set()
        """Those that stand for processes on other machines: a signal would reach only what stands here."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> frozenset[str]:
        """Those that were started and are not known to have ended."""
        return frozenset(self._children.keys() - self.exits.keys())

    def start(self, command: Command) -> int:
        """Starts a child, or one that has ended anew; returns where in its log this start begins, in bytes.

        OSError when it can't be started.
        """
        self.exits.pop(command.member, None)
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            log = stack.enter_context(command.log.open("ab"))
            start_bytes = log.tell()
            log.write(_header(command).encode())
            log.flush()
            child = self._spawn(command, log)
        self._children[command.member] = child
        gone = threading.Event()
        self._watch(partial(self._wait_for_exit, gone), command.member, child)
        if command.beat_s is not None:
            self._far.add(command.member)
            self._watch(partial(_beat, gone, command.beat_s), command.member, child)
        return start_bytes

    def next_event(self, timeout_s: float | None) -> Event | None:
        """The next event, or None after `timeout_s` seconds without one."""
        try:
            event = self._events.get(timeout=None if timeout_s is None else max(0.0, timeout_s))
        except Empty:
            return None
        if isinstance(event, Exited):
            self.exits[event.member] = event.code
        return event

    def tell(self, news: object) -> None:
        """Puts `news` among the events; from any thread."""
        self._events.put(Told(news))

    def end(self, members: Iterable[str]) -> None:
        """Asks some children to end; their exits are events, as ever."""
        for member in members:
            child = self._children[member]
            if member in self._far and child.stdin is not None:
                with suppress(OSError):
                    child.stdin.close()
            else:
                _signal_group(child.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Ends all children: SIGTERM, at most `grace_s` seconds, then SIGKILL. A signal to us cuts the wait short."""
        self.end(self.running)
        self._wait_until_gone(self.grace_s)
        for member in self.running:
            _signal_group(self._children[member].pid, signal.SIGKILL)
        self._wait_until_gone(KILL_S)
        for thread in self._threads:
            thread.join(timeout=KILL_S)
        for child in self._children.values():
            if child.stdin is not None:
                child.stdin.close()

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Makes SIGINT, SIGTERM and SIGHUP events, for as long as it is entered; main thread only."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            for number in before:
                signal.signal(number, self._on_signal)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, signal_number: int, _frame: FrameType | None) -> None:
        self._events.put(Interrupted(signal_number))  # SimpleQueue.put may interrupt itself

    def _spawn(self, command: Command, log: IO[bytes]) -> subprocess.Popen[bytes]:
        arguments, kept = list(command.arguments), list(command.kept_descriptors)
        read_end, write_end = os.pipe() if command.announces else (-1, -1)
        if command.announces:
            arguments += [READY_OPTION, str(write_end)]
            kept.append(write_end)
        try:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.environment},
                pass_fds=kept,
                start_new_session=True,
            )
        except BaseException:
            if command.announces:
                os.close(read_end)
            raise
        finally:
            if command.announces:
                os.close(write_end)
        if command.announces:
            self._watch(self._read_announcement, command.member, read_end)
        return child

    def _watch(self, target: Callable[..., None], member: str, source: object) -> None:
        thread = threading.Thread(target=target, args=(member, source), name=f"child-{member}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _read_announcement(self, member: str, read_end: int) -> None:
        with os.fdopen(read_end, encoding="utf-8", errors="replace") as pipe:
            line = pipe.readline()
        if line.endswith("\n"):
            self._events.put(Announced(member, line.strip()))

    def _wait_for_exit(self, gone: threading.Event, member: str, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        gone.set()
        # What the child itself has started and left behind is in its group still.
        _signal_group(child.pid, signal.SIGKILL)
        self._events.put(Exited(member, code))

    def _wait_until_gone(self, limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while self.running and (left_s := until - time.monotonic()) > 0:
            if isinstance(self.next_event(left_s), Interrupted):
                return


def _beat(gone: threading.Event, every_s: float, _member: str, child: subprocess.Popen[bytes]) -> None:
    """Writes a byte every so often, until the child or its stdin is gone."""
    with suppress(OSError, ValueError):  # ValueError: closed by `end`
        while child.stdin is not None and not gone.is_set():
            child.stdin.write(b"\n")
            child.stdin.flush()
            gone.wait(every_s)


def _signal_group(group: int, signal_number: int) -> None:
    # Gone already; or (macOS) there, but only as a zombie.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal_number)


def _header(command: Command) -> str:
    now = datetime.now().astimezone()
    return f"{now:%H:%M:%S} [{command.member}] ---- {now:%Y-%m-%d} started: {' '.join(command.arguments)}\n"
