"""What one rank has still to send to another, and what of it may be sent now. No network, no time; any thread.

A tensor is *admitted* while those admitted before it leave room in `buffer_bytes`: it is copied, its sender may go on,
and it is sent unasked. One that finds no room stays where it is, in the sender's own memory. It is announced, and goes
when the receiver wants it or when room has come free, and its sender waits until then. So neither end ever holds more
than `buffer_bytes` of copies, and a program that receives in another order than it sent still gets on.

All that was not taken is kept. A new stream begins with what the other end has had, and the rest is said again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from comms.tensor_header import TensorHeader

MOST_HELD = 4096
"""Most tensors that are sent unasked and not yet taken, however small."""
MOST_ANNOUNCED = 4096
"""Most that are announced at a time; further ones wait unsaid."""
Said = Literal["nothing", "announced", "sent"]


@dataclass(eq=False)
class Outgoing:
    """A tensor on its way."""

    sequence: int
    header: TensorHeader
    content: memoryview
    """The sender's own memory; from its admission on a copy."""
    accepted: Future[None] = field(default_factory=Future)
    """Done when the sender's memory is its own again."""
    admitted: bool = False
    wanted: bool = False
    said: Said = "nothing"


class Outbox:
    """The tensors for one destination."""

    def __init__(self, buffer_bytes: int, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called, by any thread, when there may be more to say."""
        self._buffer_bytes = buffer_bytes
        self._on_change = on_change
        self._lock = threading.Lock()
        self._untaken: dict[int, Outgoing] = {}
        self._last_sequence = 0
        self._held_bytes = self._held = self._announced = 0
        self._failure: Exception | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the copies that are kept here."""
        return self._held_bytes

    @property
    def is_empty(self) -> bool:
        """Whether all has been taken."""
        return not self._untaken

    def post(self, header: TensorHeader, content: memoryview) -> Future[None]:
        """Takes on a tensor; the future is done when `content` may change. It holds the error when the peer is gone."""
        with self._lock:
            outgoing = Outgoing(self._last_sequence + 1, header, content)
            if self._failure is not None:
                outgoing.accepted.set_exception(self._failure)
                return outgoing.accepted
            self._last_sequence += 1
            self._untaken[outgoing.sequence] = outgoing
            self._admit(outgoing)
        self._settle([outgoing] if outgoing.admitted else [])
        return outgoing.accepted

    def next(self) -> Outgoing | None:
        """What to say next: all of it when its `said` has become "sent", its header when "announced". Or nothing."""
        with self._lock:
            for outgoing in self._untaken.values():
                if outgoing.said == "sent":
                    continue
                if outgoing.admitted or outgoing.wanted:
                    self._say(outgoing, "sent")
                    return outgoing
                if outgoing.said == "nothing":
                    if self._announced >= MOST_ANNOUNCED:
                        return None  # what comes after it may not be said before it
                    self._say(outgoing, "announced")
                    return outgoing
        return None

    def greeted(self, taken_below: int, taken: Iterable[int], arrived: Iterable[int]) -> None:
        """Begins a new stream, to a receiver that has had so much."""
        arrived = frozenset(arrived)
        already = frozenset(taken)
        self.taken([s for s in tuple(self._untaken) if s < taken_below or s in already])
        with self._lock:
            for outgoing in self._untaken.values():
                self._say(outgoing, "sent" if outgoing.sequence in arrived else "nothing")
        self._on_change()

    def wanted(self, sequences: Iterable[int]) -> None:
        """Takes note of what the receiver waits for; numbers of tensors that are not here are nothing."""
        with self._lock:
            for sequence in sequences:
                if sequence in self._untaken:
                    self._untaken[sequence].wanted = True
        self._on_change()

    def taken(self, sequences: Iterable[int]) -> None:
        """Forgets what was taken, and admits what there is room for now."""
        with self._lock:
            gone = [self._untaken.pop(sequence) for sequence in sequences if sequence in self._untaken]
            for outgoing in gone:
                self._announced -= outgoing.said == "announced"
                if outgoing.admitted:
                    self._held -= 1
                    self._held_bytes -= len(outgoing.content)
            done = [outgoing for outgoing in gone if not outgoing.admitted]
            waiting = [o for o in self._untaken.values() if not o.admitted and o.said != "sent"]
            done += [outgoing for outgoing in waiting if self._admit(outgoing)]
        self._settle(done)

    def fail(self, error: Exception) -> None:
        """Fails what waits, and whatever is posted from now on."""
        with self._lock:
            self._failure = self._failure or error
            waiting = [outgoing for outgoing in self._untaken.values() if not outgoing.admitted]
            self._untaken.clear()
        for outgoing in waiting:
            outgoing.accepted.set_exception(error)
        self._on_change()

    def _admit(self, outgoing: Outgoing) -> bool:
        num_bytes = len(outgoing.content)
        if self._held_bytes + num_bytes > self._buffer_bytes or self._held >= MOST_HELD:
            return False
        outgoing.content, outgoing.admitted = memoryview(bytes(outgoing.content)), True
        self._held, self._held_bytes = self._held + 1, self._held_bytes + num_bytes
        return True

    def _say(self, outgoing: Outgoing, said: Said) -> None:
        self._announced += (said == "announced") - (outgoing.said == "announced")
        outgoing.said = said

    def _settle(self, done: Iterable[Outgoing]) -> None:
        for outgoing in done:
            outgoing.accepted.set_result(None)
        self._on_change()
