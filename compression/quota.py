"""How many values of each chunk are kept: k, or all of a chunk that has fewer real ones.

A *quota* is the shape of everything sparse: arrays of one entry for each kept value, chunk after chunk, within a chunk
in ascending place. Where no chunk is short it is simply (num_chunks, k), and the ragged rest is hidden here.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compression.layout import ChunkLayout

Scalar = TypeVar("Scalar", bound=np.generic)


class Quota:
    """min(k, real values) of every chunk of `layout`."""

    def __init__(self, layout: ChunkLayout, k: int) -> None:
        if not 1 <= k <= layout.chunk:
            raise ValueError(f"k = {k} is not between 1 and the chunk ({layout.chunk})")
        self.layout = layout
        self.k = k
        self.counts: NDArray[np.int64] = np.minimum(layout.num_real, k)
        """(num_chunks,): values kept of each chunk."""
        self.total = int(self.counts.sum())
        """Values kept of the fragment."""
        self.ragged = self.total != layout.num_chunks * k

    @cached_property
    def held(self) -> NDArray[np.bool_]:
        """(num_chunks, k): the first counts[c] of each row, those that hold a value."""
        return np.arange(self.k) < self.counts[:, None]

    def rows(self, kept: NDArray[Scalar]) -> NDArray[Scalar]:
        """(total,) as (num_chunks, k), short rows filled with zeros at their end; a view where none is short."""
        if not self.ragged:
            return kept.reshape(-1, self.k)
        padded = np.zeros((self.layout.num_chunks, self.k), kept.dtype)
        padded[self.held] = kept
        return padded

    def flat(self, rows: NDArray[Scalar]) -> NDArray[Scalar]:
        """(num_chunks, k) as (total,): the inverse of `rows`."""
        return rows[self.held] if self.ragged else rows.reshape(-1)

    def spread(self, per_chunk: NDArray[Scalar]) -> NDArray[Scalar]:
        """(num_chunks,) as (total,): what belongs to a chunk, given to each of its kept values."""
        return np.repeat(per_chunk, self.counts if self.ragged else self.k)

    def tensor_of_values(self) -> NDArray[np.int64]:
        """(total,): the number of the tensor that each kept value belongs to."""
        spans = self.layout.spans
        return self.spread(np.repeat(np.arange(len(spans)), [span.num_chunks for span in spans]))
