"""log2 and 2^-x in integers, the same bits on every machine: what floating-point libraries do not promise.

    log2_of(x)      = e 2^26 + LOG[m] + interpolated,  x = 2^e (1 + m / 2^10 + ...),     in units of 2^-26     (1)
    two_to_minus(y) = 2^30 2^-y, by the 10 upper bits of y's fraction, interpolated,     in units of 2^-30     (2)

Both are monotonic, which the coder of places relies on: equal masses give equal intervals, greater ones never smaller.
The tables are computed when the module is imported, in Python's own integers of 80 bits and more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from compression.compiled import inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG_BITS = 26
"""Binary digits of a logarithm after the point."""
POWER_BITS = 30
_TABLE_BITS = 10
_EXACT_BITS = 80


def _log_table() -> NDArray[np.int64]:
    """log2(1 + i / 2^10) for i = 0 .. 2^10, digit after digit: squaring doubles a logarithm."""
    table = []
    for i in range(1 << _TABLE_BITS):
        x, digits = (1 << _EXACT_BITS) + (i << (_EXACT_BITS - _TABLE_BITS)), 0
        for _ in range(LOG_BITS):
            x = x * x >> _EXACT_BITS
            carry = x >> (_EXACT_BITS + 1)
            x >>= carry
            digits = 2 * digits + carry
        table.append(digits)
    return np.array([*table, 1 << LOG_BITS], np.int64)


def _power_table() -> NDArray[np.int64]:
    """2^-(i / 2^10) for i = 0 .. 2^10, as products of 2^-1/2, 2^-1/4, 2^-1/8, ..."""
    root, powers = 1 << (_EXACT_BITS - 1), [1 << _EXACT_BITS]
    for _ in range(_TABLE_BITS):
        root = math.isqrt(root << _EXACT_BITS)
        powers = [product for power in powers for product in (power, power * root >> _EXACT_BITS)]
    return np.array([*(power >> (_EXACT_BITS - POWER_BITS) for power in powers), 1 << (POWER_BITS - 1)], np.int64)


LOG = _log_table()
POWER = _power_table()


@inlined
def log2_of(x: int) -> int:
    """log2 of 1 <= x < 2^53 in units of 2^-26, rounded down (1): x is exact as a float, whose bits hold e and m."""
    bits = np.float64(x).view(np.int64)
    i = (bits >> (52 - _TABLE_BITS)) & ((1 << _TABLE_BITS) - 1)
    fraction = (bits >> (32 - _TABLE_BITS)) & ((1 << 20) - 1)
    log: int = (((bits >> 52) - 1023) << LOG_BITS) + LOG[i] + (((LOG[i + 1] - LOG[i]) * fraction) >> 20)
    return log


@inlined
def two_to_minus(y: int) -> int:
    """2^-y in units of 2^-30, for y >= 0 in units of 2^-26 (2)."""
    whole = y >> LOG_BITS
    if whole > POWER_BITS:
        return 0
    i = (y >> (LOG_BITS - _TABLE_BITS)) & ((1 << _TABLE_BITS) - 1)
    fraction = y & ((1 << (LOG_BITS - _TABLE_BITS)) - 1)
    power: int = (POWER[i] - (((POWER[i] - POWER[i + 1]) * fraction) >> (LOG_BITS - _TABLE_BITS))) >> whole
    return power
