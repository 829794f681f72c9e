"""Where the kept values of a chunk lie: n places, ascending, by how often rows and columns were hit before.

Each row of the tensor has a weight r_i, each column a weight c_j; both start at PRIOR and grow by HIT with every place
in them, at once, so that the next place in the same chunk already profits. A place has w_ij = r_i c_j. With `left` places
still to come, W the weight from the present place to the end, F the weight from there up to place x:

    P(next place is before x) = 1 - ((W - F) / W)^left                  the least of `left` independent draws    (1)
    cut(x) = A - A 2^(-left (log2 W - log2 (W - F))) + x - start        in units of 2^-24, A = 2^24 - 2^16       (2)
    place x is the interval [cut(x), cut(x + 1)); up to 2^24 if `left` places could not lie beyond it            (3)

x - start counts real places only, and leaves no place without an interval. A flat w makes (1) nearly the uniform bound log2 binomial(C, n) / n.

The decoder turns (2) around to find the place (`_goal`, a little off), and then moves to the place whose interval
holds its target; so rounding in `_goal` is no part of the format, and every loop ends within the chunk.

Differs: the paper counts 12 bits for a place. Nobody else, as far as we know, learns rows and columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.compiled import compiled, inlined
from compression.logarithm import LOG_BITS, POWER_BITS, log2_of, two_to_minus
from compression.rangecoder import INTERVAL_BITS, code_interval, target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compression.rangecoder import Coder, Words

    Integers = NDArray[np.int64]

PRIOR = 16
"""Weight of a row or a column never hit: as much as two hits."""
HIT = 8
MOST = 1 << 18
"""A weight that no longer grows: all of 256 x 256 places together stay below 2^53."""
GROUP = 8
"""Columns whose weights are also summed up, to pass over them at once."""
_A = (1 << INTERVAL_BITS) - (1 << 16)
_END = 1 << INTERVAL_BITS


@compiled
def code_places(
    coder: Coder,
    words: Words,
    found: Integers,
    rows: int,
    cols: int,
    row_weights: Integers,
    col_weights: Integers,
    groups: Integers,
) -> Coder:
    """Codes the places `found` (n, 2), each a row and a column, ascending, of a chunk with `rows` x `cols` real values.

    `row_weights` (rows,), `col_weights` (cols,) grow with what is coded; `groups` (cols / GROUP, rounded up) is scratch.
    """
    decoding = coder.decoding
    across = _sum_groups(col_weights, cols, groups)
    below = 0
    for i in range(1, rows):
        below += row_weights[i]
    row, col, tail = 0, 0, across
    last_row, last_col = (rows * cols - len(found)) // cols, (rows * cols - len(found)) % cols
    wanted = 0
    for number in range(len(found)):
        left = len(found) - number
        whole = row_weights[row] * tail + below * across
        log_whole = log2_of(whole)
        if decoding:
            wanted = target(coder)
            r, c, before = _seek(
                _goal(wanted, left, whole, log_whole), row, col, tail, across, last_row, last_col, cols,
                row_weights, col_weights, groups,
            )
        else:
            r, c = found[number, 0], found[number, 1]
            before = -_sum_before(col_weights, groups, col) * row_weights[row]
            for i in range(row, r):
                before += row_weights[i] * across
            before += row_weights[r] * _sum_before(col_weights, groups, c)
        offset = (r - row) * cols + c - col
        first = _cut(left, log_whole, whole - before, offset)
        while first > wanted and decoding:
            c -= 1
            if c < 0:
                r, c = r - 1, cols - 1
            before -= row_weights[r] * col_weights[c]
            offset -= 1
            first = _cut(left, log_whole, whole - before, offset)
        while True:
            before += row_weights[r] * col_weights[c]
            offset += 1
            stop = _END
            if r != last_row or c != last_col:
                stop = _cut(left, log_whole, whole - before, offset)
            if stop > wanted or not decoding:
                break
            first = stop
            c += 1
            if c == cols:
                r, c = r + 1, 0
        coder = code_interval(coder, words, first, stop)
        found[number, 0], found[number, 1] = r, c
        # learn, and stand behind the place
        for i in range(row + 1, r + 1):
            below -= row_weights[i]
        if row_weights[r] < MOST:
            row_weights[r] += HIT
        if col_weights[c] < MOST:
            col_weights[c] += HIT
            groups[c // GROUP] += HIT
            across += HIT
        row, col = r, c + 1
        if col == cols:
            row, col = r + 1, 0
            if row < rows:
                below -= row_weights[row]
        tail = across - _sum_before(col_weights, groups, col)
        last_col += 1
        if last_col == cols:
            last_row, last_col = last_row + 1, 0
    return coder


@compiled
def _seek(
    goal: int,
    row: int,
    col: int,
    tail: int,
    across: int,
    last_row: int,
    last_col: int,
    cols: int,
    row_weights: Integers,
    col_weights: Integers,
    groups: Integers,
) -> tuple[int, int, int]:
    """The place in which `goal` lies, from (row, col) on and up to the last one, and the weight before it."""
    before, in_row = 0, row_weights[row] * tail
    while row < last_row and before + in_row <= goal:
        before += in_row
        row, col = row + 1, 0
        in_row = row_weights[row] * across
    weight = row_weights[row]
    stop = last_col if row == last_row else cols - 1
    while col < stop:
        if col % GROUP == 0 and col + GROUP <= stop and before + weight * groups[col // GROUP] <= goal:
            before += weight * groups[col // GROUP]
            col += GROUP
        elif before + weight * col_weights[col] <= goal:
            before += weight * col_weights[col]
            col += 1
        else:
            break
    return row, col, before


@inlined
def _cut(left: int, log_whole: int, rest: int, offset: int) -> int:
    """The cut before a place, with `rest` = W - F from it to the end (2)."""
    if rest <= 0:
        return _A + offset
    return _A - ((two_to_minus(left * (log_whole - log2_of(rest))) * _A) >> POWER_BITS) + offset


@inlined
def _goal(wanted: int, left: int, whole: int, log_whole: int) -> int:
    """About the F whose cut is `wanted`: (2) turned around, without the offset."""
    log_rest = log_whole - (log2_of(_A) - log2_of(max(_A - wanted, 1))) // left
    if log_rest <= 0:
        return whole
    exponent = (log_rest >> LOG_BITS) + 1
    mantissa = two_to_minus((exponent << LOG_BITS) - log_rest)
    if exponent >= POWER_BITS:
        return max(whole - (mantissa << (exponent - POWER_BITS)), 0)
    return max(whole - (mantissa >> (POWER_BITS - exponent)), 0)


@compiled
def _sum_groups(col_weights: Integers, cols: int, groups: Integers) -> int:
    """The sum of all weights; `groups` gets those of each group."""
    groups[:] = 0
    across = 0
    for j in range(cols):
        groups[j // GROUP] += col_weights[j]
        across += col_weights[j]
    return across


@inlined
def _sum_before(col_weights: Integers, groups: Integers, col: int) -> int:
    """The weight of the columns before `col`."""
    total = 0
    for g in range(col // GROUP):
        total += groups[g]
    for j in range(col // GROUP * GROUP, col):
        total += col_weights[j]
    return total
