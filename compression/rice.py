"""Rice codes of the gaps between places: the simple coder, in numpy alone, that needs no compiler.

    gap      places from the one before in the chunk, or from its beginning, that are passed over; 0 or more
    q, rest  gap = q 2^b + rest,  b = floor(log2(max(1, 45 (C - k) / (64 (k + 1)))))           (1)

with b the usual choice for gaps of that mean (45 / 64 for ln 2). Of all gaps first the q, each as so many 0 bits and
a 1, then the rests, b bits each, then levels and codes at fixed widths. 7.5 bits for a place at k = 64 of 4096, where
the uniform bound is 7.36.

Paper: Rice & Plaunt 1971; Golomb 1966 for (1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compression import bits
from compression.codec import PayloadError
from compression.streams import Symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from compression.quantizer import Quantizer
    from compression.quota import Quota


class Rice:
    """Rice codes for places, fixed widths for the rest. A `compression.streams.StreamCoder` for every quantizer."""

    coder_id = 1
    learns = False
    streams: tuple[str, ...] = ("quotients", "rests", "levels", "codes")

    def encode(self, symbols: Symbols, quota: Quota, quantizer: Quantizer) -> Sequence[bytes]:
        """Four streams."""
        b = rice_bits(quota)
        places = symbols.places.astype(np.int64)
        gaps = np.diff(places, prepend=-1) - 1
        first = _first_of_chunks(quota)
        gaps[first] = places[first]
        ends = np.cumsum((gaps >> b) + 1) - 1
        unary = np.zeros(int(ends[-1]) + 1, np.uint8)
        unary[ends] = 1
        return [
            np.packbits(unary, bitorder="little").tobytes(),
            bits.pack((gaps & ((1 << b) - 1)).astype(np.uint32), b) if b else b"",
            bits.pack(symbols.levels, quantizer.level_bits),
            bits.pack(symbols.codes, quantizer.code_bits),
        ]

    def decode(self, streams: Sequence[memoryview], quota: Quota, quantizer: Quantizer) -> Symbols:
        """The symbols; PayloadError unless there are as many 1 bits as values, the last one in the last byte."""
        b = rice_bits(quota)
        ends = np.flatnonzero(np.unpackbits(np.frombuffer(streams[0], np.uint8), bitorder="little"))
        if len(ends) != quota.total:
            raise PayloadError(f"quotients: {len(ends)} of them, expected {quota.total}")
        if int(ends[-1]) // 8 != len(streams[0]) - 1:
            raise PayloadError("quotients: bytes follow the last one")
        steps = np.diff(ends, prepend=-1)
        steps = ((steps - 1) << b) + 1
        if b:
            steps += bits.unpack(streams[1], b, quota.total, "rests")
        positions = np.cumsum(steps)
        first = _first_of_chunks(quota)
        before = positions[first] - steps[first]
        places = positions - 1 - quota.spread(before)
        if int(places.max()) >= quota.layout.chunk:
            raise PayloadError(f"places: {int(places.max())} is not below the chunk ({quota.layout.chunk})")
        return Symbols(
            places.astype(np.uint16),
            bits.unpack(streams[2], quantizer.level_bits, quantizer.num_levels(quota), "levels"),
            bits.unpack(streams[3], quantizer.code_bits, quota.total, "codes"),
        )

    def limits(self, quota: Quota, quantizer: Quantizer) -> Sequence[tuple[int, int]]:
        """A bit for every quotient, and the most that quotients in a chunk can add up to."""
        b = rice_bits(quota)
        most = quota.total + quota.layout.num_chunks * (quota.layout.chunk >> b)
        fixed = [
            bits.num_bytes(b, quota.total),
            bits.num_bytes(quantizer.level_bits, quantizer.num_levels(quota)),
            bits.num_bytes(quantizer.code_bits, quota.total),
        ]
        return [(bits.num_bytes(1, quota.total), bits.num_bytes(1, most)), *((length, length) for length in fixed)]

    def expected(self, quota: Quota, quantizer: Quantizer) -> Sequence[int]:
        """For places drawn evenly: of n gaps in N places each is N / (n + 1) - 1 / (n + 1) n on average."""
        b = rice_bits(quota)
        gap = (quota.layout.num_real - quota.counts) / (quota.counts + 1)
        stay = gap / (1 + gap)  # a gap of this mean goes on with this chance
        whole = np.where(stay > 0, stay ** (1 << b), 0.0)
        quotients = quota.counts * (1 + whole / (1 - whole))
        (_, _), *fixed = self.limits(quota, quantizer)
        return [int(np.ceil(quotients.sum() / 8)), *(length for length, _ in fixed)]


def rice_bits(quota: Quota) -> int:
    """b (1)."""
    return max(1, 45 * (quota.layout.chunk - quota.k) // (64 * (quota.k + 1))).bit_length() - 1


def _first_of_chunks(quota: Quota) -> NDArray[np.int64]:
    """Where the values of each chunk begin."""
    return np.cumsum(quota.counts) - quota.counts
