"""The shuffled stream: the training pieces of an epoch in a seeded order, and which of them a lease owns.

    epoch e:   order_e = argsort of Philox bits keyed (seed, e);   start_e[i] = tokens of the pieces before the i-th
    lease:     the pieces whose first token lies in one of its segments

A piece has one first token, so any disjoint leases that cover an epoch own each of its pieces once; and nobody but
the one who trains needs to know more of the corpus than `tokens_per_epoch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_train.data.pieces import Int64s, Pieces, random_order

if TYPE_CHECKING:
    from comms.leases import Lease
    from dist_train.data.corpus import Corpus

# Leases lie in this epoch, or in the one before where work came back: their orders are kept.
EPOCHS_KEPT = 2


@dataclass(frozen=True, eq=False)
class _Epoch:
    order: Int64s
    """(pieces,) indices into the training pieces."""
    starts: Int64s
    """(pieces,) position in the stream of each one's first token; strictly rising."""


class Stream:
    """The training pieces of `corpus` in the order of the run's `seed`, epoch after epoch."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.corpus = corpus
        self._seed = seed
        self._epochs: dict[int, _Epoch] = {}

    @property
    def tokens_per_epoch(self) -> int:
        """What a LeaseBook for this stream must be made with."""
        return self.corpus.tokens_per_epoch

    def pieces_of(self, lease: Lease) -> Pieces:
        """The pieces whose first token `lease` holds, in stream order; none where its segments are too short.

        ValueError when a segment reaches beyond its epoch: then the lease was cut for another corpus.
        """
        owned = [np.empty(0, dtype=np.int64)]
        for segment in sorted(lease):
            if segment.stop > self.tokens_per_epoch:
                raise ValueError(
                    f"{segment} reaches beyond an epoch of {self.tokens_per_epoch} tokens; "
                    f"it was cut for another corpus"
                )
            epoch = self._epoch(segment.epoch)
            first, last = np.searchsorted(epoch.starts, [segment.start, segment.stop])
            owned.append(epoch.order[first:last])
        return self.corpus.training[np.concatenate(owned)]

    def places_of(self, lease: Lease) -> list[tuple[int, int]]:
        """Epoch and position in its stream of the first token of each of those pieces, in the same order."""
        places = list[tuple[int, int]]()
        for segment in sorted(lease):
            starts = self._epoch(segment.epoch).starts
            first, last = np.searchsorted(starts, [segment.start, segment.stop])
            places += [(segment.epoch, position) for position in starts[first:last].tolist()]
        return places

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            order = random_order(len(self.corpus.training), self._seed, number)
            lengths = self.corpus.training.lengths[order]
            self._epochs[number] = _Epoch(order, np.cumsum(lengths) - lengths)
            while len(self._epochs) > EPOCHS_KEPT:
                del self._epochs[min(self._epochs.keys() - {number})]
        return self._epochs[number]
