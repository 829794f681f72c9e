"""What has come to one rank from another and was not received yet. No network, no time; any thread.

Tensors are received in the order of their numbers within a lane and tag. Memory is given to a tensor when its header
has been checked and there is either room for it in `buffer_bytes` or somebody who waits for it; a sender that sends
more than that unasked breaks the rules, and its stream ends with a WireError.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from comms.outbox import MOST_ANNOUNCED, MOST_HELD
from comms.tensor_header import TensorHeader
from comms.wire import WireError


@dataclass(frozen=True)
class Received:
    """A tensor that has come whole."""

    header: TensorHeader
    content: bytearray


@dataclass(eq=False)
class _Incoming:
    """A tensor of which at least the header has come."""

    sequence: int
    header: TensorHeader
    content: bytearray | None = None
    filled_bytes: int = 0
    receiver: Future[Received] | None = None
    """Who waits for it."""

    @property
    def has_arrived(self) -> bool:
        return self.content is not None and self.filled_bytes == len(self.content)


@dataclass(frozen=True)
class Greeting:
    """What has been had from a source: see protos/tensors.proto."""

    taken_below: int
    taken: tuple[int, ...]
    arrived: tuple[int, ...]


class Inbox:
    """The tensors of one source."""

    def __init__(self, buffer_bytes: int, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called, by any thread, when there is something to tell the sender."""
        self._buffer_bytes = buffer_bytes
        self._on_change = on_change
        self._lock = threading.Lock()
        self._incoming: dict[int, _Incoming] = {}
        self._unclaimed = defaultdict[tuple[str, int], deque[_Incoming]](deque)
        self._receivers = defaultdict[tuple[str, int], deque[Future[Received]]](deque)
        self._last_sequence = 0
        self._open: _Incoming | None = None
        self._held_bytes = self._held = 0
        self._taken: list[int] = []
        self._wanted: list[int] = []
        self._taken_beyond = set[int]()
        self._taken_below = 1
        self._failure: Exception | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of memory given to tensors for which nobody waits."""
        return self._held_bytes

    # ---- the program's side ----

    def receive(self, lane: str, tag: int) -> Future[Received]:
        """The next tensor of a lane and tag; the future holds the error when the peer is gone and has sent no more."""
        future = Future[Received]()
        received: Received | None = None
        with self._lock:
            key = (lane, tag)
            if unclaimed := self._unclaimed.get(key):
                incoming = unclaimed.popleft()
                if not unclaimed:
                    del self._unclaimed[key]
                received = self._claim(incoming, future)
            elif self._failure is not None:
                future.set_exception(self._failure)
            else:
                self._receivers[key].append(future)
        if received is not None:
            future.set_result(received)
        self._on_change()
        return future

    def fail(self, error: Exception) -> None:
        """Fails who waits, and who asks from now on for what has not come."""
        with self._lock:
            self._failure = self._failure or error
            waiting = [future for futures in self._receivers.values() for future in futures]
            self._receivers.clear()
            for incoming in [i for i in self._incoming.values() if not i.has_arrived]:
                if incoming.receiver is not None:
                    waiting.append(incoming.receiver)
                self._forget(incoming)
        for future in waiting:
            future.set_exception(error)

    # ---- the stream's side ----

    def new_stream(self) -> Greeting:
        """What a sender that begins anew must know; what came of the tensor under way is thrown away."""
        with self._lock:
            if self._open is not None:
                self._release(self._open)
                self._open = None
            self._taken.clear()
            self._wanted.clear()
            arrived = tuple(sorted(i.sequence for i in self._incoming.values() if i.has_arrived))
            return Greeting(self._taken_below, tuple(sorted(self._taken_beyond)), arrived)

    def begin(self, sequence: int, header: TensorHeader, *, announced: bool) -> None:
        """Takes a header; WireError when it may not come now. Its bytes follow in `more`."""
        with self._lock:
            if self._open is not None:
                raise WireError("a tensor began before the one before it ended")
            incoming = self._recognised(sequence, header)
            if announced:
                if incoming.receiver is not None:
                    self._wanted.append(sequence)
            else:
                self._allot(incoming)
        if announced:
            self._on_change()
        else:
            self._finish_if_whole()

    def more(self, data: bytes) -> None:
        """Takes the next bytes of the tensor begun last."""
        with self._lock:
            incoming = self._open
            if incoming is None or incoming.content is None or not data:
                raise WireError("bytes of no tensor" if data else "an empty chunk")
            end = incoming.filled_bytes + len(data)
            if end > len(incoming.content):
                raise WireError(f"more than the {len(incoming.content)} bytes of {incoming.header}")
            incoming.content[incoming.filled_bytes : end] = data
            incoming.filled_bytes = end
        self._finish_if_whole()

    def notes(self) -> tuple[list[int], list[int]]:
        """What the sender is to be told, once: which tensors were taken, and which are wanted."""
        with self._lock:
            notes = self._taken, self._wanted
            self._taken, self._wanted = [], []
        return notes

    # ---- under the lock ----

    def _recognised(self, sequence: int, header: TensorHeader) -> _Incoming:
        """The tensor of a number: a new one, or one that was said before."""
        known = self._incoming.get(sequence)
        if known is None:
            if sequence != self._last_sequence + 1:
                raise WireError(f"tensor {sequence} came after tensor {self._last_sequence}")
            if len(self._incoming) >= MOST_ANNOUNCED + MOST_HELD:
                raise WireError(f"more than {len(self._incoming)} tensors that nobody has received")
            known = self._incoming[sequence] = _Incoming(sequence, header)
            self._last_sequence = sequence
            key = (header.lane, header.tag)
            if receivers := self._receivers.get(key):
                known.receiver = receivers.popleft()
                if not receivers:
                    del self._receivers[key]
            else:
                self._unclaimed[key].append(known)
        elif known.has_arrived or known.header != header:
            raise WireError(f"tensor {sequence} came twice, or as another one")
        return known

    def _allot(self, incoming: _Incoming) -> None:
        """Gives a tensor its memory."""
        num_bytes = incoming.header.num_bytes
        if incoming.receiver is None:
            if self._held_bytes + num_bytes > self._buffer_bytes or self._held >= MOST_HELD:
                raise WireError(f"{incoming.header} came unasked, and there is no room for it")
            self._held, self._held_bytes = self._held + 1, self._held_bytes + num_bytes
        incoming.content, incoming.filled_bytes = bytearray(num_bytes), 0
        self._open = incoming

    def _release(self, incoming: _Incoming) -> None:
        """Takes a tensor's memory back."""
        if incoming.content is not None and incoming.receiver is None:
            self._held, self._held_bytes = self._held - 1, self._held_bytes - len(incoming.content)
        incoming.content, incoming.filled_bytes = None, 0

    def _claim(self, incoming: _Incoming, future: Future[Received]) -> Received | None:
        """Lets `future` have a tensor: now if it has arrived, else when it does."""
        if incoming.content is not None:  # no longer held for nobody
            self._held, self._held_bytes = self._held - 1, self._held_bytes - len(incoming.content)
        incoming.receiver = future
        if incoming.has_arrived:
            return self._hand_over(incoming)
        if incoming.content is None:
            self._wanted.append(incoming.sequence)
        return None

    def _hand_over(self, incoming: _Incoming) -> Received:
        content = incoming.content
        if content is None:
            raise AssertionError("handed over before it arrived")
        del self._incoming[incoming.sequence]
        self._taken.append(incoming.sequence)
        self._taken_beyond.add(incoming.sequence)
        while self._taken_below in self._taken_beyond:
            self._taken_beyond.remove(self._taken_below)
            self._taken_below += 1
        return Received(incoming.header, content)

    def _forget(self, incoming: _Incoming) -> None:
        self._release(incoming)
        del self._incoming[incoming.sequence]
        key = (incoming.header.lane, incoming.header.tag)
        if incoming.receiver is None:
            self._unclaimed[key].remove(incoming)
        if self._open is incoming:
            self._open = None

    def _finish_if_whole(self) -> None:
        """Hands the tensor under way to who waits for it, when the last of its bytes has come."""
        done: tuple[Future[Received], Received] | None = None
        with self._lock:
            incoming = self._open
            if incoming is None or not incoming.has_arrived:
                return
            self._open = None
            if incoming.receiver is not None:
                done = incoming.receiver, self._hand_over(incoming)
        if done is not None:
            done[0].set_result(done[1])
            self._on_change()
