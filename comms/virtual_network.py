"""What lies between virtual members: lines and paths on which bytes take the seconds that they would take.

A payload is a fluid that shares the lines (comms.fluid). A message of a packet or less goes between the packets of
others: it takes its own time on the slowest limit of its way, and nothing from the rest. Everything takes the path's
latency, and half of its jitter, which is the mean. The first words between two members wait for a connection.

    on the wire   w(b) = b + 9 ceil(b / 16384) of HTTP/2, then 52 for each 1448 of TCP and IP                       (1)
    connection    2 (latency there + latency back): TCP's handshake, and gRPC's wait for the other side's settings  (2)

Not simulated: TCP's slow start, acknowledgements, loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from comms.bucket import SEGMENT_BYTES, wire_bytes
from comms.fluid import FluidLinks, Limits, Stream
from comms.ledger import MESSAGE_HEADER_BYTES, Ledger
from comms.link_plan import LinkPlan
from comms.virtual_time import World

_FRAME_BYTES, _FRAME_HEADER_BYTES = 16_384, 9


class VirtualNetwork:
    """The links of `plan` between `members`, whose ledgers are kept here too."""

    def __init__(self, members: Sequence[str], plan: LinkPlan, ledgers: Mapping[str, Ledger]) -> None:
        self.plan = plan
        self._ledgers = ledgers
        self._numbers = {member: number for number, member in enumerate(members)}
        self._links = FluidLinks(limits_of(plan, members))
        self.world = World(self._links)
        self._connected = set[frozenset[str]]()
        self._talks = dict[tuple[str, str], _Talk]()

    def become(self, plan: LinkPlan) -> None:
        """From now on the links are those of `plan`."""
        self.plan = plan
        self._links.become(limits_of(plan, list(self._numbers)), self.world.now_s)

    def ledger(self, member: str) -> Ledger:
        """The ledger of `member`."""
        return self._ledgers[member]

    def latency_s(self, sender: str, receiver: str) -> float:
        """What a byte takes, beside its turn."""
        path = self.plan.path(sender, receiver)
        return path.latency_s + path.jitter_s / 2

    def connect(self, one: str, other: str, then: Callable[[], None]) -> None:
        """`then`, when these two can speak (2)."""
        pair = frozenset((one, other))
        if pair in self._connected:
            then()
            return
        round_trip_s = self.latency_s(one, other) + self.latency_s(other, one)
        self._connected.add(pair)
        self.world.at(self.world.now_s + 2 * round_trip_s, then)

    def say(self, sender: str, receiver: str, num_bytes: int, then: Callable[[], None]) -> None:
        """A control message of a conversation, whose messages arrive in order; counted at both ends."""
        talk = self._talks.setdefault((sender, receiver), _Talk(self, sender, receiver))
        talk.say(num_bytes, then)

    def ask(self, sender: str, receiver: str, num_bytes: int, then: Callable[[], None]) -> None:
        """A control message by itself; counted at both ends."""
        self.ledger(sender).control(peer=receiver, direction="sent", num_bytes=num_bytes)

        def arrived() -> None:
            self.ledger(receiver).control(peer=sender, direction="received", num_bytes=num_bytes)
            then()

        self.carry(sender, receiver, num_bytes + MESSAGE_HEADER_BYTES, arrived)

    def carry(
        self,
        sender: str,
        receiver: str,
        num_bytes: int,
        then: Callable[[], None],
        on_left: Callable[[], None] | None = None,
        *,
        is_payload: bool = False,
    ) -> Stream | None:
        """Bytes begin their way: `on_left` when the last has left, `then` when it has arrived. The stream, if one."""
        now_s, on_wire = self.world.now_s, framed_bytes(num_bytes)

        def left() -> None:
            if on_left is not None:
                on_left()
            self.world.at(self.world.now_s + self.latency_s(sender, receiver), then)

        limit = self.plan.limit_bits_per_second(sender, receiver)
        if limit is not None and (is_payload or num_bytes > SEGMENT_BYTES):
            return self._links.begin(self._numbers[sender], self._numbers[receiver], on_wire, left, now_s)
        self.world.at(now_s + (8 * on_wire / limit if limit else 0.0), left)
        return None

    def cancel(self, stream: Stream) -> None:
        """A transfer ends where it is."""
        self._links.cancel(stream, self.world.now_s)


class _Talk:
    """One direction of a conversation: a message leaves when the one before it has."""

    def __init__(self, network: VirtualNetwork, sender: str, receiver: str) -> None:
        self._network, self._sender, self._receiver = network, sender, receiver
        self._queue = deque[tuple[int, Callable[[], None]]]()

    def say(self, num_bytes: int, then: Callable[[], None]) -> None:
        self._network.ledger(self._sender).control(peer=self._receiver, direction="sent", num_bytes=num_bytes)
        self._queue.append((num_bytes, then))
        if len(self._queue) == 1:
            self._network.connect(self._sender, self._receiver, self._begin)

    def _begin(self) -> None:
        num_bytes, then = self._queue[0]

        def arrived() -> None:
            self._network.ledger(self._receiver).control(peer=self._sender, direction="received", num_bytes=num_bytes)
            then()

        num_carried = num_bytes + MESSAGE_HEADER_BYTES
        self._network.carry(self._sender, self._receiver, num_carried, arrived, self._left)

    def _left(self) -> None:
        self._queue.popleft()
        if self._queue:
            self._begin()


def framed_bytes(num_bytes: int) -> int:
    """What a stream of so many message bytes comes to on the wire (1)."""
    return wire_bytes(num_bytes + _FRAME_HEADER_BYTES * -(-num_bytes // _FRAME_BYTES))


def limits_of(plan: LinkPlan, members: Sequence[str]) -> Limits:
    """The limits of `plan` in numbers; a path that is cut carries nothing."""
    size = len(members)
    cap = np.full((size, size), np.inf)
    for i, sender in enumerate(members):
        for j, receiver in enumerate(members):
            path = plan.path(sender, receiver)
            if path.is_cut:
                cap[i, j] = 0.0
            elif path.bits_per_second is not None:
                cap[i, j] = path.bits_per_second
    lines = [plan.line(member) for member in members]
    up = np.array([np.inf if line.up_bits_per_second is None else line.up_bits_per_second for line in lines])
    down = np.array([np.inf if line.down_bits_per_second is None else line.down_bits_per_second for line in lines])
    return Limits(up, down, cap)
