"""Which part of the shuffled corpus whom: disjoint leases, taken back when their work does not count.

The corpus of an epoch is one stream of tokens, its documents in the order of that epoch's shuffle. A lease is a list
of half-open intervals of that stream; a document (or piece of one) belongs to the interval in which it *starts*, so
documents stay whole, no document has two owners, and the coordinator needs to know nothing but how long an epoch is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, order=True)
class Segment:
    """The tokens [start, stop) of the shuffled stream of `epoch`."""

    epoch: int
    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        """Length of the interval."""
        return self.stop - self.start


Lease = tuple[Segment, ...]


@dataclass(frozen=True)
class LeaseBook:
    """What of the corpus is still to be handed out: a cursor, and what came back before it."""

    tokens_per_epoch: int
    epoch: int = 0
    position: int = 0
    returned: tuple[Segment, ...] = ()
    """Sorted, disjoint, all of them before the cursor."""

    def grant(self, num_tokens: int) -> tuple[LeaseBook, Lease]:
        """`num_tokens` tokens that nobody holds, what came back first; and the book without them."""
        book, granted = self, list[Segment]()
        while num_tokens:
            segment = book._next_segment(num_tokens)
            granted.append(segment)
            num_tokens -= segment.num_tokens
            book = book._without(segment)
        return book, merge(tuple(granted))

    def give_back(self, lease: Lease) -> LeaseBook:
        """The book with `lease` to be handed out again; ValueError when part of it never was handed out."""
        for segment in lease:
            if not 0 <= segment.start < segment.stop <= self.tokens_per_epoch:
                raise ValueError(f"{segment} is no segment of an epoch of {self.tokens_per_epoch} tokens")
            if (segment.epoch, segment.stop) > (self.epoch, self.position):
                raise ValueError(f"{segment} was never granted: the book stands at {self.epoch}:{self.position}")
        returned = merge((*self.returned, *lease))
        if any(a.epoch == b.epoch and a.stop > b.start for a, b in pairwise(returned)):
            raise ValueError(f"{lease} overlaps what was given back already")
        return replace(self, returned=returned)

    def _next_segment(self, most_tokens: int) -> Segment:
        if self.returned:
            first = self.returned[0]
            return replace(first, stop=min(first.stop, first.start + most_tokens))
        return Segment(self.epoch, self.position, min(self.tokens_per_epoch, self.position + most_tokens))

    def _without(self, segment: Segment) -> LeaseBook:
        if self.returned:
            rest = replace(self.returned[0], start=segment.stop)
            return replace(self, returned=((rest,) if rest.num_tokens else ()) + self.returned[1:])
        if segment.stop == self.tokens_per_epoch:
            return replace(self, epoch=self.epoch + 1, position=0)
        return replace(self, position=segment.stop)


def without(lease: Lease, part: Lease) -> Lease:
    """The tokens of `lease` that are not in `part`; ValueError unless all of `part`, and not more cuts, are in it."""
    left = list(merge(lease))
    if len(part) > len(left):
        raise ValueError(f"{len(part)} segments are not a rest of {len(left)}")
    for taken in merge(part):
        for i, whole in enumerate(left):
            if whole.epoch == taken.epoch and whole.start <= taken.start and taken.stop <= whole.stop:
                left[i : i + 1] = [replace(whole, stop=taken.start), replace(whole, start=taken.stop)]
                break
        else:
            raise ValueError(f"{taken} is not in the lease")
    return merge(tuple(segment for segment in left if segment.num_tokens))


def tail(lease: Lease, epoch: int, position: int) -> Lease:
    """What of `lease` lies at or behind a place of the stream."""
    behind = [segment for segment in sorted(lease) if (segment.epoch, segment.stop) > (epoch, position)]
    return tuple(
        replace(segment, start=max(segment.start, position)) if segment.epoch == epoch else segment
        for segment in behind
    )


def merge(segments: Lease) -> Lease:
    """The same tokens in order, neighbours joined. Overlaps are kept, so that they can be found."""
    joined = list[Segment]()
    for segment in sorted(segments):
        if joined and joined[-1].epoch == segment.epoch and joined[-1].stop == segment.start:
            joined[-1] = replace(joined[-1], stop=segment.stop)
        else:
            joined.append(segment)
    return tuple(joined)
