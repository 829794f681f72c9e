"""Where a process stands among the ranks of its replica, and how long and how much it waits for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from comms.caller import require_name
from comms.errors import StaleGroup
from comms.wire import MOST_TEXT, WireError

DEADLINE_KEY = "pipeline.transfer_deadline_s"
OUTAGE_KEY = "pipeline.outage_deadline_s"
BUFFER_KEY = "pipeline.buffer_bytes"


@dataclass(frozen=True)
class Place:
    """One rank of one forming of a group."""

    run: str
    replica: str
    """Also the name in the certificate of all of its ranks."""
    rank: int
    ranks: int
    generation: int = 0
    """Counts how often the group was formed; all ranks of one forming say the same."""

    def __post_init__(self) -> None:
        """ValueError for a rank that is none."""
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} is none of {self.ranks}; ranks count from 0")

    @property
    def group(self) -> str:
        """The group's name on the wire."""
        return f"{self.run}/{self.replica}"

    @property
    def others(self) -> list[int]:
        """The ranks that are not this one."""
        return [rank for rank in range(self.ranks) if rank != self.rank]

    def peer(self, rank: int) -> str:
        """How a rank of this replica is called in ledgers and errors."""
        return f"{self.replica}.{rank}"

    def admit(self, context: grpc.aio.ServicerContext[Any, Any], group: str, generation: int, rank: int) -> None:
        """StaleGroup or WrongName unless the caller, which says all this, is another rank or this one; WireError."""
        require_name(context, self.replica)
        if (group, generation) != (self.group, self.generation):
            said = f"{group[:MOST_TEXT]!r} in generation {generation}"
            raise StaleGroup(f"the caller is of {said}, and this is {self.group!r} in generation {self.generation}")
        if rank >= self.ranks:
            raise WireError(f"rank {rank} is none of {self.ranks}")


@dataclass(frozen=True)
class Bounds:
    """What the ranks of a replica may cost each other; the same at all of them."""

    deadline_s: float = 300.0
    """For each single thing that one rank waits for at another; it may be computing meanwhile."""
    outage_deadline_s: float = 20.0
    """How long a broken connection may take to come back."""
    buffer_bytes: int = 64 * 2**20
    """For each pair of ranks and direction: copies at the sender, tensors that nobody waits for at the receiver."""
    most_tensor_bytes: int = 2**30
    """A larger one is refused, whatever its header says."""
