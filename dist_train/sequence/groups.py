"""The ranks of a replica, and the groups of them that can share sequences.

A group is aligned: its size d is a power of two, its first rank a multiple of d. So N ranks have at most 2N - 1
groups, all can be made once at the start, and a plan may use any of them in any step. N need not be a power of two:

    N = 6:   {0} {1} {2} {3} {4} {5}   {0 1} {2 3} {4 5}   {0 1 2 3}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dist_train.sequence.traffic import RankTraffic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class SequenceGroup:
    """Two or more ranks that share sequences, as one of them sees it."""

    ranks: tuple[int, ...]
    """Of the replica, rising."""
    position: int
    """This rank's place in `ranks`."""
    process_group: dist.ProcessGroup
    traffic: RankTraffic

    @property
    def degree(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


def aligned_groups(count: int) -> list[tuple[int, ...]]:
    """All aligned groups of `count` ranks, single ranks first: at most 2 * count - 1."""
    sizes = [1 << power for power in range(count.bit_length())]
    return [tuple(range(start, start + size)) for size in sizes for start in range(0, count - size + 1, size)]


@dataclass(eq=False)
class RankGroups:
    """This rank among those of its replica. Made by all of them together (`join_ranks`)."""

    rank: int
    count: int
    """N."""
    device: torch.device
    """Where tensors must lie for the collectives."""
    everybody: dist.ProcessGroup
    groups: dict[tuple[int, ...], SequenceGroup]
    """Those that this rank is in, of two ranks or more."""
    traffic: RankTraffic = field(default_factory=RankTraffic)

    def group(self, ranks: tuple[int, ...]) -> SequenceGroup | None:
        """The group of `ranks`, None for this rank alone; ValueError when there is none or this rank isn't in it."""
        if ranks == (self.rank,):
            return None
        if ranks not in self.groups:
            raise ValueError(
                f"Ranks {ranks} are no group of rank {self.rank} of {self.count}; a group is a power of two of "
                f"consecutive ranks, its first one a multiple of their number"
            )
        return self.groups[ranks]

    def sum(self, tensor: Tensor) -> None:
        """Replaces `tensor`, of one shape everywhere, by its sum over all ranks: the same bits on each."""
        dist.all_reduce(tensor, group=self.everybody)

    def broadcast(self, facts: Any) -> Any:
        """`facts` of rank 0 on all ranks: what JSON can hold. The others' are ignored."""
        text = json.dumps(facts).encode() if self.rank == 0 else b""
        first = dist.get_global_rank(self.everybody, 0)
        size = torch.tensor([len(text)], device=self.device)
        dist.broadcast(size, first, group=self.everybody)
        content = torch.zeros(int(size.item()), dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        content = content.to(self.device)
        dist.broadcast(content, first, group=self.everybody)
        return json.loads(bytes(content.tolist()))

    def gather(self, number: float) -> list[float]:
        """Every rank's `number`, by rank."""
        numbers = [torch.zeros(1, dtype=torch.float64, device=self.device) for _ in range(self.count)]
        own = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.all_gather(numbers, own, group=self.everybody)
        return [value.item() for value in numbers]

    def wait_for_all(self) -> None:
        """Blocks until every rank is here."""
        self.gather(0.0)


def join_ranks(everybody: dist.ProcessGroup | None = None, timeout_s: float = 600.0) -> RankGroups:
    """This rank among those of `everybody` (default: all that torch.distributed knows), and its groups.

    Blocks until all of them call it. The groups use the backend of `everybody`: gloo for the CPU, nccl for GPUs, there
    on the current device. A rank that dies makes the collectives of the others fail, at the latest after `timeout_s`.
    """
    parent = everybody or dist.group.WORLD
    if parent is None:
        raise ValueError("torch.distributed is not initialized; call torch.distributed.init_process_group first")
    backend, rank, count = dist.get_backend(parent), dist.get_rank(parent), dist.get_world_size(parent)
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    joined = RankGroups(rank, count, device, parent, {})
    global_ranks = dist.get_process_group_ranks(parent)
    for ranks in aligned_groups(count):
        if rank in ranks and len(ranks) > 1:
            process_group = parent
            if len(ranks) < count:
                process_group = dist.new_group(
                    [global_ranks[r] for r in ranks],
                    timeout=timedelta(seconds=timeout_s),
                    backend=backend,
                    use_local_synchronization=True,
                )
            joined.groups[ranks] = SequenceGroup(ranks, rank - ranks[0], process_group, joined.traffic)
    return joined
