"""Sequences of like lengths counted together, so that the linear program stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SINGLES = 16
BUCKETS = 12
SHORTEST_TOKENS = 64
"""Below it the squared term is next to nothing, and one bucket is enough."""


@dataclass(frozen=True)
class Buckets:
    """Q runs of the falling list of lengths."""

    count: NDArray[np.int64]
    shortest: NDArray[np.int64]
    longest: NDArray[np.int64]
    tokens: NDArray[np.int64]
    """(Q,) all tokens of the bucket: nothing is rounded here."""
    first: NDArray[np.int64]
    """(Q,) position of its longest sequence."""


def bucket(lengths: NDArray[np.int64], singles: int = SINGLES, buckets: int = BUCKETS) -> Buckets:
    """The longest `singles` each alone, the others in `buckets` of equal ratio. `lengths` falling."""
    edges = list(range(min(singles, len(lengths)) + 1))
    rest = lengths[len(edges) - 1 :]
    if len(rest):
        ratios = np.geomspace(rest[0], min(rest[0], max(rest[-1], SHORTEST_TOKENS)), buckets + 1)[1:-1]
        cuts = np.searchsorted(-rest, -np.floor(ratios), side="right") + edges[-1]
        edges += sorted({int(cut) for cut in cuts} | {len(lengths)} - {edges[-1]})
    edges = sorted(set(edges))
    begin, end = np.array(edges[:-1]), np.array(edges[1:])
    total = np.concatenate([[0], np.cumsum(lengths)])
    return Buckets(end - begin, lengths[end - 1], lengths[begin], total[end] - total[begin], begin)
