"""An outbox and an inbox, with a wire between them that may break anywhere: all comes once, in order, within bounds."""

from __future__ import annotations

from collections import defaultdict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.inbox import Inbox, Received
from comms.outbox import MOST_ANNOUNCED, MOST_HELD, Outbox, Outgoing
from comms.tensor_header import TensorHeader
from comms.wire import WireError

BUFFER_BYTES = 40
CHUNK_BYTES = 8


def header(num_bytes: int, tag: int = 0) -> TensorHeader:
    return TensorHeader("0", tag, "uint8", (num_bytes,))


@dataclass
class Wire:
    """Both ends, and what is said between them; nothing is said by itself."""

    outbox: Outbox = field(default_factory=lambda: Outbox(BUFFER_BYTES))
    inbox: Inbox = field(default_factory=lambda: Inbox(BUFFER_BYTES))
    saying: Outgoing | None = None
    said_bytes: int = 0
    posted: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    accepted: list[Future[None]] = field(default_factory=list)
    receiving: dict[int, deque[Future[Received]]] = field(default_factory=lambda: defaultdict(deque))
    got: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    notes: deque[tuple[list[int], list[int]]] = field(default_factory=deque)

    def post(self, tag: int, num_bytes: int) -> None:
        content = bytes([len(self.posted[tag]) % 256, tag] * num_bytes)[:num_bytes]
        self.posted[tag].append(content)
        mine = bytearray(content)
        accepted = self.outbox.post(header(num_bytes, tag), memoryview(mine))
        if accepted.done() and mine:
            mine[0] ^= 255  # it is ours again
        self.accepted.append(accepted)

    def receive(self, tag: int) -> None:
        self.receiving[tag].append(self.inbox.receive("0", tag))

    def carry(self) -> bool:
        """Takes one step of one stream; False when there is none."""
        if self.saying is None:
            outgoing = self.outbox.next()
            if outgoing is None:
                return False
            self.inbox.begin(outgoing.sequence, outgoing.header, announced=outgoing.said == "announced")
            if outgoing.said == "sent" and len(outgoing.content):
                self.saying, self.said_bytes = outgoing, 0
            return True
        chunk = bytes(self.saying.content[self.said_bytes : self.said_bytes + CHUNK_BYTES])
        self.inbox.more(chunk)
        self.said_bytes += len(chunk)
        if self.said_bytes == len(self.saying.content):
            self.saying = None
        return True

    def answer(self) -> bool:
        """Carries the receiver's notes back, some of them late."""
        taken, wanted = self.inbox.notes()
        if taken or wanted:
            self.notes.append((taken, wanted))
        if not self.notes:
            return False
        taken, wanted = self.notes.popleft()
        self.outbox.wanted(wanted)
        self.outbox.taken(taken)
        return True

    def cut(self) -> None:
        """The stream breaks; what was on its way back is lost with it."""
        self.saying = None
        self.notes.clear()
        greeting = self.inbox.new_stream()
        self.outbox.greeted(greeting.taken_below, greeting.taken, greeting.arrived)

    def settle(self) -> None:
        """Carries all there is to carry, both ways."""
        while self.carry() or self.answer():
            self.check()

    def check(self) -> None:
        assert 0 <= self.outbox.held_bytes <= BUFFER_BYTES
        assert 0 <= self.inbox.held_bytes <= BUFFER_BYTES
        for tag, futures in self.receiving.items():
            while futures and futures[0].done():
                self.got[tag].append(bytes(futures.popleft().result().content))
            assert self.got[tag] == self.posted[tag][: len(self.got[tag])]


posts = st.tuples(st.just("post"), st.integers(0, 2), st.sampled_from([0, 1, 7, 8, 9, 30, 40, 41, 100]))
receives = st.tuples(st.just("receive"), st.integers(0, 2), st.just(0))
others = st.tuples(st.sampled_from(["carry", "carry", "carry", "answer", "cut"]), st.just(0), st.just(0))


@given(events=st.lists(st.one_of(posts, receives, others, others), max_size=60))
def test_everything_comes_once_and_in_order_however_often_the_stream_breaks(events: list[tuple[str, int, int]]) -> None:
    wire = Wire()
    for what, tag, num_bytes in events:
        match what:
            case "post":
                wire.post(tag, num_bytes)
            case "receive":
                wire.receive(tag)
            case "carry":
                wire.carry()
            case "answer":
                wire.answer()
            case _:
                wire.cut()
        wire.check()
    for tag in (2, 1, 0):  # the rest is received, the last tag first
        for _ in range(len(wire.posted[tag]) - len(wire.got[tag]) - len(wire.receiving[tag])):
            wire.receive(tag)
            wire.settle()
    wire.settle()
    assert all(wire.got[tag] == sent for tag, sent in wire.posted.items())
    assert all(accepted.done() for accepted in wire.accepted)
    assert wire.outbox.is_empty
    assert (wire.outbox.held_bytes, wire.inbox.held_bytes) == (0, 0)


def test_a_sender_waits_when_nobody_receives_and_goes_on_when_somebody_does() -> None:
    wire = Wire()
    for _ in range(6):
        wire.post(0, 10)
    wire.settle()
    assert [accepted.done() for accepted in wire.accepted] == [True] * 4 + [False] * 2
    wire.receive(0)
    wire.settle()
    assert [accepted.done() for accepted in wire.accepted] == [True] * 5 + [False]


def test_tensors_of_no_bytes_are_bounded_too() -> None:
    wire = Wire()
    for _ in range(MOST_HELD + MOST_ANNOUNCED + 10):
        wire.post(0, 0)
    while wire.carry():
        pass
    assert [accepted.done() for accepted in wire.accepted].count(True) == MOST_HELD


def test_who_waits_for_a_lost_peer_is_told_and_what_had_come_can_still_be_had() -> None:
    wire = Wire()
    wire.post(0, 5)
    wire.post(1, 100)
    while wire.carry():
        pass
    wire.receive(1)
    lost = ConnectionError("gone")
    wire.inbox.fail(lost)
    wire.outbox.fail(lost)
    assert wire.receiving[1][0].exception() is lost
    assert wire.accepted[1].exception() is lost
    assert bytes(wire.inbox.receive("0", 0).result().content) == wire.posted[0][0]
    assert wire.inbox.receive("0", 0).exception() is lost
    assert wire.outbox.post(header(1), memoryview(b"x")).exception() is lost
    assert wire.inbox.held_bytes == 0


def begun(inbox: Inbox, *tensors: tuple[int, TensorHeader, bool]) -> None:
    for sequence, tensor, announced in tensors:
        inbox.begin(sequence, tensor, announced=announced)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([(2, header(1), False)], "tensor 2 came after tensor 0"),
        ([(1, header(0), False), (1, header(0), False)], "came twice"),
        ([(1, header(50), True), (1, header(5), False)], "as another one"),
        ([(1, header(BUFFER_BYTES + 1), False)], "came unasked"),
        ([(1, header(9), False), (2, header(9), False)], "before the one before it ended"),
        ([(n, header(0), False) for n in range(1, MOST_HELD + 2)], "no room"),
        ([(n, header(0), True) for n in range(1, MOST_HELD + MOST_ANNOUNCED + 2)], "nobody has received"),
    ],
)
def test_a_sender_that_breaks_the_rules_is_refused(tensors: list[tuple[int, TensorHeader, bool]], says: str) -> None:
    inbox = Inbox(BUFFER_BYTES)
    with pytest.raises(WireError, match=says):
        begun(inbox, *tensors)
    assert inbox.held_bytes <= BUFFER_BYTES


@pytest.mark.parametrize(("chunk", "says"), [(b"abc", "more than the 2 bytes"), (b"", "empty chunk")])
def test_more_or_less_bytes_than_announced_are_refused(chunk: bytes, says: str) -> None:
    inbox = Inbox(BUFFER_BYTES)
    inbox.begin(1, header(2), announced=False)
    with pytest.raises(WireError, match=says):
        inbox.more(chunk)
    with pytest.raises(WireError, match="bytes of no tensor"):
        Inbox(BUFFER_BYTES).more(b"x")
