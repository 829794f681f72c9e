"""What a rank exchanged with the other ranks of its replica, summed up until the ledger takes it.

An all-to-all is counted for each peer, exactly: what leaves this rank for it and what comes from it. A collective that
the backend routes as it likes (a sum, a gathering) is counted for all peers together, by what a ring moves, the least
that any algorithm can do with equal ranks: (N-1)/N of the bytes for each half of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from comms.ledger import Direction, Kind, Ledger

ALL_PEERS = -1
"""Stands for "all the other ranks" where a peer is asked for."""


@dataclass
class Moved:
    """Bytes and seconds of one kind with one peer."""

    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0


class RankTraffic:
    """Sums by kind and peer, a rank of the replica. Not for several threads."""

    def __init__(self) -> None:
        self.moved: dict[tuple[Kind, int], Moved] = {}

    def record(self, kind: Kind, peer: int, *, sent_bytes: int, received_bytes: int, seconds: float) -> None:
        """Adds a transfer. `seconds` is what the caller waited; on a GPU it is not known, and 0."""
        moved = self.moved.setdefault((kind, peer), Moved())
        moved.sent_bytes += sent_bytes
        moved.received_bytes += received_bytes
        moved.seconds += seconds

    def record_ring(self, kind: Kind, num_bytes: int, ranks: int, *, halves: int, seconds: float) -> None:
        """Adds a collective over `ranks` on a tensor of `num_bytes`: a sum has two halves, gathering or scattering one.

        `num_bytes` is that of the whole tensor, also where a rank ends with a part of it.
        """
        each_way_bytes = halves * num_bytes * (ranks - 1) // ranks
        self.record(kind, ALL_PEERS, sent_bytes=each_way_bytes, received_bytes=each_way_bytes, seconds=seconds)

    def sent_bytes(self, kind: Kind) -> int:
        """Bytes of `kind` sent to anybody since the last `write`."""
        return sum(moved.sent_bytes for (its_kind, _), moved in self.moved.items() if its_kind == kind)

    def tally(self, ledger: Ledger, peer_name: Callable[[int], str]) -> None:
        """Hands the sums to the ledger, and starts over. `peer_name` is also asked for ALL_PEERS."""
        directions: tuple[Direction, ...] = ("sent", "received")
        for (kind, peer), moved in self.moved.items():
            for direction in directions:
                num_bytes = moved.sent_bytes if direction == "sent" else moved.received_bytes
                ledger.tally(
                    peer=peer_name(peer), direction=direction, kind=kind, num_bytes=num_bytes, seconds=moved.seconds
                )
        self.moved.clear()
