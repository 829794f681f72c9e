"""Who codes what: a fragment cut in lanes that know nothing of each other, so that each can have its own processor.

    slab   whole rows of blocks of one tensor, as many as make up to 2048 chunks, at least one        (1)
    lanes  as many as 96 chunks each would give, 1 to 8, no more than slabs                           (2)
    slabs, the largest first (of equals the first), each go to the lane with the fewest chunks so far (of equals the
    first); a lane codes its slabs in the fragment's order                                            (3)

More lanes cost bytes: each learns by itself, and each has a length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from compression.layout import ChunkLayout, Span
    from compression.quota import Quota

SLAB_CHUNKS = 2048
LANE_CHUNKS = 96
MOST_LANES = 8


@dataclass(frozen=True)
class Slab:
    """Rows of blocks of one tensor: a matrix of its own, or a piece of a vector."""

    first_chunk: int
    down: int
    across: int
    """Blocks."""
    rows: int
    cols: int
    """Real values."""
    height: int
    width: int
    """Of one block."""
    first_value: int
    """Where its kept values begin."""
    num_values: int
    """How many of them it has."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the coder needs to know: first chunk, blocks, real values, block, first value."""
        blocks = (self.first_chunk, self.down, self.across)
        return (*blocks, self.rows, self.cols, self.height, self.width, self.first_value)

    @property
    def num_chunks(self) -> int:
        """Blocks in all."""
        return self.down * self.across


def lanes_of(quota: Quota) -> list[list[Slab]]:
    """The slabs of each lane (1), (2), (3)."""
    starts = np.concatenate([[0], np.cumsum(quota.counts)])
    slabs = [slab for span in quota.layout.spans for slab in _slabs(span, starts)]
    lanes: list[list[Slab]] = [[] for _ in range(num_lanes(quota.layout, len(slabs)))]
    loads = [0] * len(lanes)
    for slab in sorted(slabs, key=lambda slab: -slab.num_chunks):
        lane = loads.index(min(loads))
        lanes[lane].append(slab)
        loads[lane] += slab.num_chunks
    return [sorted(lane, key=lambda slab: slab.first_chunk) for lane in lanes]


def num_lanes(layout: ChunkLayout, num_slabs: int) -> int:
    """How many lanes a fragment has (2)."""
    return max(1, min(layout.num_chunks // LANE_CHUNKS, MOST_LANES, num_slabs))


def _slabs(span: Span, starts: NDArray[np.int64]) -> Iterator[Slab]:
    down, across = span.grid
    at_once = max(1, SLAB_CHUNKS // across)
    for top in range(0, down, at_once):
        height = min(at_once, down - top)
        rows = min(span.rows, (top + height) * span.height) - top * span.height
        first = span.first_chunk + top * across
        value, stop = int(starts[first]), int(starts[first + height * across])
        yield Slab(first, height, across, rows, span.cols, span.height, span.width, value, stop - value)
