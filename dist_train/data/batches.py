"""Batches: the pieces of one inner step, packed one after the other without padding.

lease -> pieces in stream order -> `steps` runs of nearly equal tokens -> each sorted by length and packed
                                -> under `inner.seconds`: runs of `inner.batch_tokens`, as many as there is time for
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from comms.leases import tail
from dist_train.data.pieces import Pieces, balanced_parts
from dist_train.dealing import dealt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from comms.leases import Lease
    from dist_train.data.corpus import Corpus
    from dist_train.data.stream import Stream

# Marks a position that predicts nothing; what torch's cross-entropy leaves out by default.
NO_TARGET = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Documents (here: pieces) that are trained together and never see each other."""

    tokens: Tensor
    """(n,) int64, on the CPU."""
    document_lengths: tuple[int, ...]
    """Tokens of each document; their sum is n. Longest first, so that equal ones lie side by side."""

    def __post_init__(self) -> None:
        if sum(self.document_lengths) != len(self.tokens) or min(self.document_lengths, default=1) < 1:
            raise ValueError(
                f"document_lengths = {self.document_lengths} must be at least 1 each, and {len(self.tokens)} in all"
            )

    @property
    def num_tokens(self) -> int:
        """n."""
        return len(self.tokens)

    @property
    def num_targets(self) -> int:
        """Positions that predict a token: all but the last one of each document."""
        return self.num_tokens - len(self.document_lengths)

    @cached_property
    def position_ids(self) -> Tensor:
        """(n,) int64, each token's position in its document."""
        lengths = torch.tensor(self.document_lengths)
        return torch.arange(self.num_tokens) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)

    @cached_property
    def targets(self) -> Tensor:
        """(n,) int64, the token that follows in the same document; NO_TARGET at each document's end."""
        targets = self.tokens.roll(-1)
        targets[torch.tensor(self.document_lengths).cumsum(0) - 1] = NO_TARGET
        return targets


def batches_of(stream: Stream, lease: Lease, steps: int) -> Iterator[Batch]:
    """The pieces of `lease` in at most `steps` batches of nearly equal tokens, in stream order; empty ones left out."""
    for part in balanced_parts(stream.pieces_of(lease), steps):
        if len(part):
            yield _packed(stream.corpus, part)


def window_batches(stream: Stream, lease: Lease, most_steps: int, batch_tokens: int) -> Iterator[tuple[Batch, Lease]]:
    """The pieces of `lease` in batches of nearly `batch_tokens`, and after each what is left of the lease.

    Where a batch ends depends on what lies before it alone. So the batches of a lease without what was left after the
    k-th are the first k batches of the whole lease: who does a cut-off round again takes the same steps.
    """
    pieces = stream.pieces_of(lease)
    ends = np.cumsum(pieces.lengths)
    batch_of_piece = np.minimum((2 * ends - pieces.lengths) // (2 * batch_tokens), most_steps - 1)
    bounds = np.flatnonzero(np.diff(batch_of_piece, prepend=-1)).tolist()
    places = stream.places_of(lease)
    for first, last in pairwise([*bounds, len(pieces)]):
        rest = tail(lease, *places[last]) if last < len(pieces) else ()
        yield _packed(stream.corpus, pieces[first:last]), rest


def micro_batches(batch: Batch, most_tokens: int | None) -> list[Batch]:
    """`batch` cut between documents so that no part holds more than `most_tokens`; whole when None.

    ValueError when a single document is longer.
    """
    if most_tokens is None or batch.num_tokens <= most_tokens:
        return [batch]
    if (longest := max(batch.document_lengths)) > most_tokens:
        raise ValueError(
            f"A document of {longest} tokens does not fit in a micro-batch of {most_tokens}; "
            f"raise inner.micro_batch_tokens"
        )
    groups, held = list[list[int]](), 0
    for length in batch.document_lengths:
        if not groups or held + length > most_tokens:
            groups.append([])
            held = 0
        groups[-1].append(length)
        held += length
    stops = accumulate(map(sum, groups))
    return [
        Batch(batch.tokens[stop - sum(group) : stop], tuple(group)) for group, stop in zip(groups, stops, strict=True)
    ]


def part_of(batch: Batch, documents: Sequence[int]) -> Batch:
    """The documents at these indices of `batch`, in that order."""
    starts = [0, *accumulate(batch.document_lengths)]
    tokens = torch.cat([batch.tokens[starts[i] : starts[i + 1]] for i in documents])
    return Batch(tokens, tuple(batch.document_lengths[i] for i in documents))


def balanced_micro_batches(batch: Batch, count: int) -> list[Batch]:
    """`batch` in exactly `count` parts of nearly equal tokens: each document goes where the fewest are so far.

    A part left without documents gets one of a single token, which predicts nothing.
    """
    filling = Batch(batch.tokens.new_zeros(1), (1,))
    return [part_of(batch, hand) if hand else filling for hand in dealt(batch.document_lengths, count)]


def validation_batches(
    corpus: Corpus, most_tokens_in_all: int, batch_tokens: int, share: tuple[int, int] = (0, 1)
) -> list[Batch]:
    """Share `share` = (position, count) of the first `most_tokens_in_all` validation tokens, in batches.

    The shares of one count are disjoint, and their union is the same for every count. The last piece is shortened to
    meet `most_tokens_in_all`. A batch holds at most `batch_tokens`, or one piece that is longer.
    """
    position, count = share
    starts_at = np.cumsum(corpus.validation.lengths) - corpus.validation.lengths
    left = most_tokens_in_all - starts_at
    evaluated = Pieces(corpus.validation.starts, np.minimum(corpus.validation.lengths, left))[left > 0]
    mine = balanced_parts(evaluated, count)[position]
    if not len(mine):
        return []
    return micro_batches(_packed(corpus, mine), max(batch_tokens, int(mine.lengths.max())))


def _packed(corpus: Corpus, pieces: Pieces) -> Batch:
    ordered = pieces.longest_first()
    lengths = ordered.lengths.tolist()
    spans = [corpus.tokens[start : start + n] for start, n in zip(ordered.starts.tolist(), lengths, strict=True)]
    return Batch(torch.from_numpy(np.concatenate(spans).astype(np.int64)), tuple(lengths))
