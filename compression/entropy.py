"""The entropy coder: all three kinds of symbols in the bits that they are worth, learned while coding.

For every chunk of a lane, in order, one after the other through one range coder:

    levels   low against the chunk to the left (or above, or before), high against low     bitmodel    (1)
    places   by the rows' and columns' hits so far                                          placement   (2)
    codes    the sign by its low-rank guess, the magnitude by how far apart the levels are  signs       (3)

Lanes are coded by as many threads as torch may use. Nothing depends on how many there are, nor on the machine: all of
it is integers, in one order.

Differs: ours. docs/experiments.md says what it saves, and what else was tried.
"""

from __future__ import annotations

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from compression import level
from compression.codec import PayloadError
from compression.lanes import lanes_of
from compression.layout import MAX_CHUNK
from compression.slab import code_lane
from compression.streams import Symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.lanes import Slab
    from compression.quantizer import Quantizer
    from compression.quota import Quota
    from compression.rangecoder import Words

MOST_WORDS_PER_VALUE = 4
MOST_WORDS_PER_LEVEL = 12
"""No symbol can take more 16-bit words."""
SIGN_BITS = 0.865
MAGNITUDE_BITS = 0.515
LEVEL_BITS = 2.27
_LENGTH_BYTES = 4


class Entropy:
    """Adaptive models and a range coder. A `compression.streams.StreamCoder` for levels of 12 bits, codes of 1 or 2."""

    coder_id = 2
    learns = True
    streams: tuple[str, ...] = ("lanes",)

    def encode(self, symbols: Symbols, quota: Quota, quantizer: Quantizer) -> Sequence[bytes]:
        """The lengths of all lanes but the last, and the lanes."""
        _check(quantizer)
        lanes = lanes_of(quota)
        places = symbols.places.astype(np.uint16)
        levels, codes = symbols.levels.astype(np.uint16), symbols.codes.astype(np.uint8)
        most = [_most_words(lane, quantizer) for lane in lanes]
        buffers = [np.empty(words, np.uint16) for words in most]
        used = _code(buffers, lanes, Symbols(places, levels, codes), quota, quantizer, decoding=False)
        parts = [buffer[:n].astype("<u2", copy=False).tobytes() for buffer, n in zip(buffers, used, strict=True)]
        return [b"".join([*(struct.pack("<I", len(part)) for part in parts[:-1]), *parts])]

    def decode(self, streams: Sequence[memoryview], quota: Quota, quantizer: Quantizer) -> Symbols:
        """The symbols; PayloadError unless every lane is as long as its symbols make it."""
        _check(quantizer)
        lanes = lanes_of(quota)
        parts = _split(streams[0], len(lanes))
        symbols = Symbols(
            np.empty(quota.total, np.uint16),
            np.empty(quantizer.num_levels(quota), np.uint16),
            np.empty(quota.total, np.uint8),
        )
        read = _code(parts, lanes, symbols, quota, quantizer, decoding=True)
        for number, (part, words) in enumerate(zip(parts, read, strict=True)):
            if words != len(part):
                raise PayloadError(f"lanes: lane {number} has {2 * len(part)} bytes, but its symbols take {2 * words}")
        return symbols

    def limits(self, quota: Quota, quantizer: Quantizer) -> Sequence[tuple[int, int]]:
        """One word a lane, and the most that all symbols can take."""
        _check(quantizer)
        lanes = lanes_of(quota)
        lengths = _LENGTH_BYTES * (len(lanes) - 1)
        most = sum(_most_words(lane, quantizer) for lane in lanes)
        return [(lengths + 2 * len(lanes), lengths + 2 * most)]

    def expected(self, quota: Quota, quantizer: Quantizer) -> Sequence[int]:
        """What real pseudo-gradients take after many rounds: measured shares of what can be calculated.

        The uniform bound log2 binomial(real values, kept) of each chunk, SIGN_BITS and MAGNITUDE_BITS a value,
        LEVEL_BITS a level. docs/experiments.md says how far they differ from model to model.
        """
        per_value = SIGN_BITS + MAGNITUDE_BITS * (quantizer.code_bits - 1)
        bits = uniform_bound_bits(quota) + per_value * quota.total
        bits += LEVEL_BITS * quantizer.code_bits * quota.layout.num_chunks
        return [math.ceil(bits / 8) + (2 + _LENGTH_BYTES) * len(lanes_of(quota)) - _LENGTH_BYTES]


def uniform_bound_bits(quota: Quota) -> float:
    """Bits that the places take when all are equally likely: the sum of log2 binomial(real values, kept)."""
    pairs, times = np.unique(quota.layout.num_real * (MAX_CHUNK + 1) + quota.counts, return_counts=True)
    bits = 0.0
    for pair, count in zip(pairs.tolist(), times.tolist(), strict=True):
        n, k = divmod(pair, MAX_CHUNK + 1)
        bits += count * (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    return bits


def _code(
    words: Sequence[Words],
    lanes: Sequence[Sequence[Slab]],
    symbols: Symbols,
    quota: Quota,
    quantizer: Quantizer,
    *,
    decoding: bool,
) -> list[int]:
    """Writes or reads every lane; how many words each has, or must have."""

    def code(lane: Sequence[Slab], words: Words) -> int:
        slabs = np.array([slab.numbers for slab in lane], np.int64)
        arrays = (symbols.places, symbols.levels, symbols.codes)
        return code_lane(words, int(decoding), slabs, quota.counts, *arrays, quantizer.code_bits)

    threads = min(len(lanes), torch.get_num_threads())
    if threads == 1:
        return [code(*task) for task in zip(lanes, words, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(code, lanes, words))


def _split(stream: memoryview, num_lanes: int) -> list[Words]:
    """The words of each lane; PayloadError unless the lengths add up to the stream."""
    table = _LENGTH_BYTES * (num_lanes - 1)
    lengths = list(struct.unpack_from(f"<{num_lanes - 1}I", stream))
    lengths.append(len(stream) - table - sum(lengths))
    if min(lengths) < 0 or any(length % 2 for length in lengths):
        raise PayloadError(f"lanes: lengths {lengths} of {len(stream)} bytes")
    parts, at = [], table
    for length in lengths:
        parts.append(np.frombuffer(stream[at : at + length], "<u2").astype(np.uint16))
        at += length
    return parts


def _most_words(lane: Sequence[Slab], quantizer: Quantizer) -> int:
    """Words that no coding of the lane's symbols exceeds."""
    values = sum(slab.num_values for slab in lane)
    chunks = sum(slab.num_chunks for slab in lane)
    return 4 + MOST_WORDS_PER_VALUE * values + MOST_WORDS_PER_LEVEL * quantizer.code_bits * chunks


def _check(quantizer: Quantizer) -> None:
    if quantizer.level_bits != level.BITS or quantizer.code_bits > 2:
        raise ValueError(f"{type(quantizer).__name__} has no entropy coder; use streams.FixedWidth or rice.Rice")
