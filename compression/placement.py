"""Where the kept values of a chunk lie: n places, ascending, by how often rows and columns were hit before.

Each row of the tensor has a weight r_i, each column a weight c_j; both start at PRIOR and grow by HIT with every place
in them, at once, so that the next place in the same chunk already profits. A place has w_ij = r_i c_j. With `left`
places still to come, W the weight from the present place to the end, F the weight from there up to place x:

    P(next place is before x) = 1 - ((W - F) / W)^left        the least of `left` independent draws              (1)
    cut(x) = A - A 2^(-left (log2 W - log2 (W - F))) + d      in units of 2^-24, A = 2^24 - 2^16                 (2)
    place x is the interval [cut(x), cut(x + 1)); up to 2^24 if `left` places could not lie beyond it            (3)

d, the real places from the present one up to x, leaves none without an interval. A flat w makes (1) nearly the uniform
bound, log2 binomial(C, n) / n bits for a place.

The decoder turns (2) around to find the place (`_goal`, a little off), and then moves to the place whose interval holds
its target; so rounding in `_goal` is no part of the format, and every loop ends within the chunk.

Paper: counts 12 bits for a place.
Differs: ours altogether. Learned rows and columns: 6.9 to 7.1 bits on real pseudo-gradients (docs/experiments.md).
"""

# ruff: noqa: PLR0917 - compiled functions have no keyword arguments

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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


class _Front(NamedTuple):
    """Where coding stands in a chunk."""

    row: int
    col: int
    """The present place; all columns of its row are behind it if there is no place left in the chunk."""
    below: int
    """Weight of the rows below it."""
    across: int
    """Weight of all columns."""
    tail: int
    """Weight of the columns from `col` on."""
    last_row: int
    last_col: int
    """The last place that leaves room for those still to come."""


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
    """Codes the places `found` (n, 2), each a row and a column, ascending, of a chunk of `rows` x `cols` real values.

    `row_weights` (rows,), `col_weights` (cols,) grow with what is coded; `groups`, one a GROUP of columns, is scratch.
    """
    across, below = _sum_groups(col_weights, cols, groups), 0
    for i in range(1, rows):
        below += row_weights[i]
    last = rows * cols - len(found)
    front = _Front(0, 0, below, across, across, last // cols, last % cols)
    for number in range(len(found)):
        left = len(found) - number
        whole = row_weights[front.row] * front.tail + front.below * front.across
        log_whole = log2_of(whole)
        if coder.decoding:
            wanted = target(coder)
            goal = _goal(wanted, left, whole, log_whole)
            r, c, before = _seek(goal, front, cols, row_weights, col_weights, groups)
            r, c, first, stop = _settle(
                wanted, left, whole, log_whole, r, c, before, front, cols, row_weights, col_weights
            )
            found[number, 0], found[number, 1] = r, c
        else:
            r, c = found[number, 0], found[number, 1]
            before = _weight_before(front, r, c, row_weights, col_weights, groups)
            offset = (r - front.row) * cols + c - front.col
            first, stop = _cut(left, log_whole, whole - before, offset), _END
            if r != front.last_row or c != front.last_col:
                before += row_weights[r] * col_weights[c]
                stop = _cut(left, log_whole, whole - before, offset + 1)
        coder = code_interval(coder, words, first, stop)
        front = _behind(front, r, c, rows, cols, row_weights, col_weights, groups)
    return coder


@inlined
def _weight_before(
    front: _Front, row: int, col: int, row_weights: Integers, col_weights: Integers, groups: Integers
) -> int:
    """F of a place."""
    total: int = row_weights[row] * _sum_before(col_weights, groups, col)
    if row == front.row:
        total -= row_weights[row] * (front.across - front.tail)
        return total
    total += row_weights[front.row] * front.tail
    for i in range(front.row + 1, row):
        total += row_weights[i] * front.across
    return total


@compiled
def _seek(
    goal: int, front: _Front, cols: int, row_weights: Integers, col_weights: Integers, groups: Integers
) -> tuple[int, int, int]:
    """The place in which `goal` lies, from the present one on and up to the last one, and the weight before it."""
    row, col, before = front.row, front.col, 0
    in_row = row_weights[row] * front.tail
    while row < front.last_row and before + in_row <= goal:
        before += in_row
        row, col = row + 1, 0
        in_row = row_weights[row] * front.across
    weight = row_weights[row]
    stop = front.last_col if row == front.last_row else cols - 1
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


@compiled
def _settle(
    wanted: int,
    left: int,
    whole: int,
    log_whole: int,
    row: int,
    col: int,
    before: int,
    front: _Front,
    cols: int,
    row_weights: Integers,
    col_weights: Integers,
) -> tuple[int, int, int, int]:
    """The place whose interval holds `wanted`, and the interval, searched from (row, col) either way."""
    offset = (row - front.row) * cols + col - front.col
    first = _cut(left, log_whole, whole - before, offset)
    while first > wanted:
        col -= 1
        if col < 0:
            row, col = row - 1, cols - 1
        before -= row_weights[row] * col_weights[col]
        offset -= 1
        first = _cut(left, log_whole, whole - before, offset)
    while row != front.last_row or col != front.last_col:
        before += row_weights[row] * col_weights[col]
        offset += 1
        stop = _cut(left, log_whole, whole - before, offset)
        if stop > wanted:
            return row, col, first, stop
        first = stop
        col += 1
        if col == cols:
            row, col = row + 1, 0
    return row, col, first, _END


@inlined
def _behind(
    front: _Front,
    row: int,
    col: int,
    rows: int,
    cols: int,
    row_weights: Integers,
    col_weights: Integers,
    groups: Integers,
) -> _Front:
    """The front behind the place (row, col), which has been learned."""
    below, across = front.below, front.across
    for i in range(front.row + 1, row + 1):
        below -= row_weights[i]
    if row_weights[row] < MOST:
        row_weights[row] += HIT
    if col_weights[col] < MOST:
        col_weights[col] += HIT
        groups[col // GROUP] += HIT
        across += HIT
    col += 1
    if col == cols:
        row, col = row + 1, 0
        if row < rows:
            below -= row_weights[row]
    last_row, last_col = front.last_row, front.last_col + 1
    if last_col == cols:
        last_row, last_col = last_row + 1, 0
    return _Front(row, col, below, across, across - _sum_before(col_weights, groups, col), last_row, last_col)


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
