"""Pieces: the spans of the corpus that are trained as a whole, their order and their shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Spans of the corpus, each one document or a part of one."""

    starts: Int64s
    """(pieces,) first token of each piece in the corpus."""
    lengths: Int64s
    """(pieces,) tokens of each piece, at least 1."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: slice | Int64s | NDArray[np.bool_]) -> Pieces:
        return Pieces(self.starts[which], self.lengths[which])

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces."""
        return int(self.lengths.sum())

    def longest_first(self) -> Pieces:
        """The same pieces by falling length, equal ones in the order that they had."""
        return self[np.argsort(-self.lengths, kind="stable")]


def cut_into_pieces(starts: Int64s, lengths: Int64s, most_tokens: int) -> Pieces:
    """Each document (`starts`, `lengths`: (documents,)) in pieces of `most_tokens` and a rest; shorter ones whole."""
    per_document = -(-lengths // most_tokens)
    first_piece = np.cumsum(per_document) - per_document
    nth = np.arange(per_document.sum(), dtype=np.int64) - np.repeat(first_piece, per_document)
    offset = nth * most_tokens
    left = np.repeat(lengths, per_document) - offset
    return Pieces(np.repeat(starts, per_document) + offset, np.minimum(left, most_tokens))


def balanced_parts(pieces: Pieces, count: int) -> list[Pieces]:
    """`pieces` cut in `count` runs of nearly equal tokens: a piece is in the run where its middle token lies.

    Runs may be empty where pieces are few. Whole numbers throughout: every machine cuts alike.
    """
    ends = np.cumsum(pieces.lengths)
    part_of_piece = (2 * ends - pieces.lengths) * count // max(1, 2 * pieces.num_tokens)
    bounds = np.searchsorted(part_of_piece, np.arange(count + 1))
    return [pieces[first:last] for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def random_order(count: int, seed: int, stream: int) -> Int64s:
    """A permutation of range(count), (count,), from (seed, stream) alone.

    Counter-based raw bits and a stable sort, because those are fixed for good: what numpy's Generator.permutation
    makes of the same bits may change with its version.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count).argsort(kind="stable").astype(np.int64)
