"""One lane: its slabs chunk by chunk, all symbols through one range coder.

For every chunk, in this order:

    low    against the chunk to its left; in the first column against the one above; else the last one coded    (1)
    high   how far above low, with two levels                                                                   (2)
    the places                                                                                    `placement`   (3)
    for every place: the sign, by `signs` in a matrix, in one context in a vector                               (4)
                     which level, in a context for each distance (2), 15 and above together                     (5)

Contexts and the chances of guesses go on through the lane; weights and factors start anew with each slab, row weights
with each row of blocks. A vector has nothing to learn from: its weights start anew with each chunk.
"""

# ruff: noqa: PLR0917 - compiled functions have no keyword arguments

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compression import level
from compression.bitmodel import NUMBER_CONTEXTS, code_in_context, code_number, new_contexts
from compression.compiled import compiled, int64
from compression.placement import GROUP, PRIOR, code_places
from compression.rangecoder import begin, end
from compression.signs import code_sign, new_chances, replay, start_factors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compression.bitmodel import Contexts
    from compression.rangecoder import Coder, Words
    from compression.signs import Chances

    Integers = NDArray[np.int64]
    Levels = NDArray[np.uint16]
    Places = NDArray[np.uint16]
    Codes = NDArray[np.uint8]

_FIRST_LEVEL = 0x700
_MASK = (1 << level.BITS) - 1
_HALF = 1 << (level.BITS - 1)
_DISTANCES = 16
_LOW = 0
_HIGH = NUMBER_CONTEXTS
_MAGNITUDE = 2 * NUMBER_CONTEXTS
_VECTOR_SIGN = _MAGNITUDE + _DISTANCES


@compiled
def code_lane(
    words: Words,
    decoding: int,
    slabs: Integers,
    counts: Integers,
    places: Places,
    levels: Levels,
    codes: Codes,
    code_bits: int,
) -> int:
    """Writes or reads the symbols of `slabs` (n, 8), each a `lanes.Slab`; how many words there are, or must be."""
    coder = begin(words, decoding)
    contexts, chances = new_contexts(_VECTOR_SIGN + 1), new_chances()
    latest = _FIRST_LEVEL
    for s in range(len(slabs)):
        coder, latest = _code_slab(
            coder, words, contexts, chances, slabs[s], counts, places, levels, codes, code_bits, latest
        )
    return end(coder, words)


@compiled
def _code_slab(
    coder: Coder,
    words: Words,
    contexts: Contexts,
    chances: Chances,
    slab: Integers,
    counts: Integers,
    places: Places,
    levels: Levels,
    codes: Codes,
    code_bits: int,
    latest: int,
) -> tuple[Coder, int]:
    """Codes one slab; `latest` is the last low level before it, the result the last one in it."""
    first, down, across, all_rows, all_cols, height, width, value = slab
    vector = height == 1
    above = latest
    kept, most = 0, 0
    for c in range(first, first + down * across):
        kept += counts[c]
        most = max(most, counts[c])
    found = np.empty((most, 2), np.int64)
    row_weights = np.empty(height, np.int64)
    col_weights = np.full(width if vector else across * width, PRIOR, np.int64)
    groups = np.empty((width + GROUP - 1) // GROUP, np.int64)
    u, v = start_factors(1 if vector else all_rows, 1), start_factors(1 if vector else all_cols, 2)
    seen, done = np.empty((1 if vector else kept, 3), np.int32), 0
    for i in range(down):
        row_weights[:] = PRIOR
        rows = min(height, all_rows - i * height)
        for j in range(across):
            c = first + i * across + j
            cols = min(width, all_cols - j * width)
            if j == 0:
                latest = above
            coder, latest, distance = _code_levels(coder, words, contexts, levels, c, latest, code_bits)
            if j == 0:
                above = latest
            left_col = j * width
            if vector:
                row_weights[:] = PRIOR
                col_weights[:] = PRIOR
                left_col = 0
            here = found[: counts[c]]
            if not coder.decoding:
                for t in range(len(here)):
                    place = np.uint32(places[value + t])
                    here[t, 0], here[t, 1] = place // np.uint32(width), place % np.uint32(width)
            coder = code_places(
                coder, words, here, rows, cols, row_weights, col_weights[left_col : left_col + cols], groups
            )
            for t in range(len(here)):
                places[value + t] = here[t, 0] * width + here[t, 1]
                code = int64(codes[value + t])
                if vector:
                    coder, negative = code_in_context(coder, words, contexts, _VECTOR_SIGN, code & 1)
                else:
                    row, col = i * height + here[t, 0], left_col + here[t, 1]
                    coder, negative = code_sign(coder, words, chances, u, v, row, col, code & 1)
                    seen[done, 0], seen[done, 1], seen[done, 2] = row, col, negative
                    done += 1
                    replay(u, v, seen, done)
                high = 0
                if code_bits > 1:
                    coder, high = code_in_context(coder, words, contexts, _MAGNITUDE + distance, code >> 1)
                codes[value + t] = negative | high << 1
            value += len(here)
    return coder, latest


@compiled
def _code_levels(
    coder: Coder, words: Words, contexts: Contexts, levels: Levels, chunk: int, predicted: int, code_bits: int
) -> tuple[Coder, int, int]:
    """Codes the levels of a chunk (1), (2); returns low, and how far above it high is, at most 15."""
    at = chunk * code_bits
    off = ((int64(levels[at]) - predicted + _HALF) & _MASK) - _HALF
    coder, off = code_number(coder, words, contexts, _LOW, off, True)
    low = (predicted + off) & _MASK
    levels[at] = low
    if code_bits == 1:
        return coder, low, 0
    distance = (int64(levels[at + 1]) - low) & _MASK
    coder, distance = code_number(coder, words, contexts, _HIGH, distance, False)
    levels[at + 1] = (low + distance) & _MASK
    return coder, low, min(distance, _DISTANCES - 1)
