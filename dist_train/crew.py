"""The ranks of one replica, and which of them answers for which fragment.

    replica of one rank      the rank owns every fragment
    several equal ranks      each holds the whole model; a fragment's owner alone keeps its theta and error feedback,
                             encodes it, fetches and applies its updates, and gives the result to the others
    stages of a pipeline     each holds and owns a span of layers; the embedding, whose update every stage needs, is
                             owned by the first and applied by all

The other replicas cannot tell these apart: they see one member and its payloads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from comms.errors import CommsError
from comms.ledger import Direction
from dist_train.coalescing import coalesced
from dist_train.dealing import dealt
from dist_train.rank_messages import number_from_bytes, number_to_bytes, slot, slots_of

Count = Callable[[Direction, int, int], None]
"""Called with the direction, the rank at the other end, and the bytes."""
EMBED = "embed"


class Solo:
    """A replica of one rank: everything is here."""

    rank = 0
    ranks = 1

    def broadcast(self, message: bytes | None) -> bytes:
        """The message."""
        return message or b""

    def all_gather(self, message: bytes) -> list[bytes]:
        """The message, as that of the only rank."""
        return [message]

    def share(self, tensor: Tensor, source: int) -> None:
        """Nothing: the source is this rank."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: this rank's are all there is."""

    def least(self, number: int) -> int:
        """The number."""
        return number

    def meter(self, count: Count) -> None:
        """Nothing: nothing moves."""


class GroupCrew:
    """Ranks that are joined by a torch.distributed process group, of CPU tensors."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._count: Count | None = None
        self.rank: int = group.rank()
        self.ranks: int = group.size()

    def meter(self, count: Count) -> None:
        """From now on tells `count` of everything that moves."""
        self._count = count

    def broadcast(self, message: bytes | None) -> bytes:
        """What rank 0 gives. CommsError when another rank is gone."""
        length = torch.tensor([len(message or b"")])
        self.share(length, 0)
        buffer = _bytes_tensor(message) if message is not None else torch.empty(int(length), dtype=torch.uint8)
        if len(buffer):
            self.share(buffer, 0)
        return bytes(buffer.numpy())

    def all_gather(self, message: bytes) -> list[bytes]:
        """What each rank gives, by rank. CommsError when one is gone."""
        lengths = [int(length) for length in self._gathered(torch.tensor([len(message)]))]
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(message)] = _bytes_tensor(message)
        return [bytes(part[:length].numpy()) for part, length in zip(self._gathered(padded), lengths, strict=True)]

    def least(self, number: int) -> int:
        """The least of what the ranks give (not negative). CommsError when one is gone."""
        return min(map(number_from_bytes, self.all_gather(number_to_bytes(number))))

    def share(self, tensor: Tensor, source: int) -> None:
        """Makes `tensor` (contiguous, on the CPU) what it is on rank `source`. CommsError when another rank is gone."""
        options = dist.BroadcastOptions()
        options.rootRank = source
        self._finish(lambda: self._group.broadcast([tensor], options))
        self._note(tensor, source)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Makes each tensor its sum over all ranks, the same bits on all. CommsError when another rank is gone."""
        coalesced(tensors, self._sum, torch.device("cpu"))

    def _sum(self, flat: Tensor) -> None:
        self._finish(partial(self._group.allreduce, [flat]))
        self._note_sum(flat)

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        outputs = [torch.empty_like(tensor) for _ in range(self.ranks)]
        self._finish(lambda: self._group.allgather([outputs], [tensor]))
        for source in range(self.ranks):
            self._note(tensor, source)
        return outputs

    def _finish(self, start: Callable[[], dist.Work]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            raise CommsError(
                f"rank {self.rank} of {self.ranks} lost the others: {str(error).splitlines()[0]}"
            ) from error

    def _note_sum(self, tensor: Tensor) -> None:
        """Counts what a ring moves: each rank passes 2 (N - 1) / N of the tensor to the next one."""
        if self._count is not None:
            num_bytes = 2 * (self.ranks - 1) * tensor.nbytes // self.ranks
            self._count("sent", (self.rank + 1) % self.ranks, num_bytes)
            self._count("received", (self.rank - 1) % self.ranks, num_bytes)

    def _note(self, tensor: Tensor, source: int) -> None:
        """Counts what a tensor that goes from `source` to all others moves, once at each end."""
        if self._count is None:
            return
        if source != self.rank:
            self._count("received", source, tensor.nbytes)
            return
        for other in range(self.ranks):
            if other != self.rank:
                self._count("sent", other, tensor.nbytes)


Crew = Solo | GroupCrew


@dataclass(frozen=True)
class Duties:
    """Which rank answers for which fragment, as one rank sees it."""

    crew: Crew
    owners: Mapping[str, int]
    """The rank that encodes a fragment and hands it out; every fragment of the model, in the model's order."""
    everybodys: frozenset[str] = frozenset()
    """Fragments whose update every rank that hosts them takes by itself."""
    is_replicated: bool = False
    """Whether every rank hosts every fragment, and gets from its owner what an update has made of it."""

    def owns(self, fragment: str) -> bool:
        """Whether this rank encodes it."""
        return self.owners[fragment] == self.crew.rank

    def needs(self, fragment: str) -> bool:
        """Whether this rank takes its update from the other replicas."""
        return self.owns(fragment) or fragment in self.everybodys

    def agreed_digest(self, digests: Mapping[str, bytes]) -> str:
        """SHA-256 (hex) over the digests of all fragments, of which this rank gives those that it needs.

        CommsError when two ranks give different ones of the same fragment.
        """
        mine = b"".join(slot(list(self.owners).index(fragment), digest) for fragment, digest in digests.items())
        found: dict[int, bytes] = {}
        for rank, part in enumerate(self.crew.all_gather(mine)):
            for index, digest in slots_of(part):
                if found.setdefault(index, digest) != digest:
                    raise CommsError(f"rank {rank} holds another {list(self.owners)[index]} than the ranks before it")
        return hashlib.sha256(b"".join(found[index] for index in range(len(self.owners)))).hexdigest()


def alone(fragments: Sequence[str]) -> Duties:
    """The duties of a replica of one rank."""
    return Duties(Solo(), dict.fromkeys(fragments, 0))


def spread(crew: Crew, num_parameters: Mapping[str, int]) -> Duties:
    """The fragments of a model that every rank holds, dealt out so that all have nearly as much to encode."""
    fragments = list(num_parameters)
    hands = dealt(list(num_parameters.values()), crew.ranks)
    owner = {fragments[index]: rank for rank, hand in enumerate(hands) for index in hand}
    return Duties(crew, {fragment: owner[fragment] for fragment in fragments}, is_replicated=True)


def staged(crew: Crew, stages: Sequence[Sequence[str]]) -> Duties:
    """The fragments of a pipeline's stages, first to last; a fragment of several stages is owned by the first."""
    owners = dict[str, int]()
    for rank, hosted in enumerate(stages):
        for fragment in hosted:
            owners.setdefault(fragment, rank)
    return Duties(crew, owners, everybodys=frozenset({EMBED}))


def _bytes_tensor(message: bytes) -> Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0, dtype=torch.uint8)
