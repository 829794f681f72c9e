"""The seam between what a sparse payload says and how its bits are written.

A sparse payload says three things, its *symbols*: which places, which levels, which codes. A *stream coder* writes
them as byte streams of its own choice. `FixedWidth` gives every symbol the same number of bits; its streams have known
lengths. `rice.Rice` and `entropy.Entropy` take fewer bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compression import bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from compression.quantizer import Quantizer
    from compression.quota import Quota


@dataclass(frozen=True)
class Symbols:
    """What one sparse payload says, as unsigned integers."""

    places: NDArray[np.unsignedinteger[Any]]
    """(total,) below C: the place of each kept value in its chunk, in the quota's order."""
    levels: NDArray[np.unsignedinteger[Any]]
    """(num_levels,) of the quantizer's level_bits."""
    codes: NDArray[np.unsignedinteger[Any]]
    """(total,) of the quantizer's code_bits."""


class StreamCoder(Protocol):
    """Symbols to the bytes of some streams and back, losslessly, the same bytes on every machine."""

    coder_id: int
    """Its number in the header."""
    streams: tuple[str, ...]
    """The names of its streams."""

    def encode(self, symbols: Symbols, quota: Quota, quantizer: Quantizer) -> Sequence[bytes]:
        """The streams in the order of `streams`."""
        ...

    def decode(self, streams: Sequence[memoryview], quota: Quota, quantizer: Quantizer) -> Symbols:
        """Symbols of exactly the quota's and the quantizer's counts, within their bits; PayloadError if there are none.

        The lengths of the streams lie within `limits`. The codec checks afterwards what the symbols mean.
        """
        ...

    def limits(self, quota: Quota, quantizer: Quantizer) -> Sequence[tuple[int, int]]:
        """The least and the most bytes of each stream."""
        ...

    learns: bool
    """Whether it profits from what pseudo-gradients have in common, most of all in the first rounds."""

    def expected(self, quota: Quota, quantizer: Quantizer) -> Sequence[int]:
        """Bytes of each stream: exact where lengths are fixed, an expectation elsewhere."""
        ...


class FixedWidth:
    """Every symbol in a fixed number of bits: ceil(log2 C) for a place, and what the quantizer says."""

    coder_id = 0
    learns = False
    streams: tuple[str, ...] = ("places", "levels", "codes")

    def encode(self, symbols: Symbols, quota: Quota, quantizer: Quantizer) -> Sequence[bytes]:
        """Three packed streams."""
        parts = (symbols.places, symbols.levels, symbols.codes)
        return [bits.pack(part, w) for part, (w, _) in zip(parts, self.widths(quota, quantizer), strict=True)]

    def decode(self, streams: Sequence[memoryview], quota: Quota, quantizer: Quantizer) -> Symbols:
        """Three unpacked streams."""
        fields = zip(self.streams, streams, self.widths(quota, quantizer), strict=True)
        return Symbols(*[bits.unpack(stream, width, count, name) for name, stream, (width, count) in fields])

    def limits(self, quota: Quota, quantizer: Quantizer) -> Sequence[tuple[int, int]]:
        """The only lengths there are."""
        lengths = [bits.num_bytes(width, count) for width, count in self.widths(quota, quantizer)]
        return [(length, length) for length in lengths]

    def expected(self, quota: Quota, quantizer: Quantizer) -> Sequence[int]:
        """Exact."""
        return [length for length, _ in self.limits(quota, quantizer)]

    def widths(self, quota: Quota, quantizer: Quantizer) -> list[tuple[int, int]]:
        """(bits, symbols) of each stream."""
        return [
            (max(1, (quota.layout.chunk - 1).bit_length()), quota.total),
            (quantizer.level_bits, quantizer.num_levels(quota)),
            (quantizer.code_bits, quota.total),
        ]
