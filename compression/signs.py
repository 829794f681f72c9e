"""Which of a matrix's kept values are negative: guessed from a low-rank model that learns while it codes.

Signs of a pseudo-gradient are far from random: they follow a matrix of low rank. Row i has a vector u_i, column j a
vector v_j, of 8 numbers each, at first small and random:

    z = u_i . v_j,   p = 1 / (1 + 2^-z)      chance that (i, j) is negative                        (1)
    e = y - p        y = 1 if it was                                                                (2)
    u_i += s (e v_j - d u_i),   v_j += s (e u_i - d v_j)      both with the old values              (3)

After each sign, (1) to (3) once for it and once for each of REPLAYS earlier places, chosen at random: as if the
coder had read them again. What is coded is not p but what became of earlier guesses like it: z, rounded, chooses one of
33 adaptive probabilities. So where signs are random the model costs next to nothing.

Everything is in units of 2^-16, in integers, rounded down.

Differs: ours altogether. On real pseudo-gradients: 0.6 to 0.8 bits for a sign instead of 1 (docs/experiments.md).
"""

# ruff: noqa: PLR0917 - compiled functions have no keyword arguments

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compression.compiled import compiled, inlined, int64
from compression.logarithm import LOG_BITS, POWER_BITS, two_to_minus
from compression.rangecoder import BIT_BITS, code_bit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compression.rangecoder import Coder, Words

    Chances = NDArray[np.int64]
    Factors = NDArray[np.int32]

FACTORS = 8
REPLAYS = 4
STEP = 26
"""s in units of 1/32."""
DECAY = np.int32(250)
"""s d in units of 2^-12."""
START = 1250
"""The components of u and v are at first evenly spread between -START / 2 and START / 2."""
BUCKETS = 33
"""Guesses are told apart in steps of a quarter, from -4 to 4."""
RATE = 6
"""A chance moves by 1/64 of its error."""
LIMIT = np.int32((1 << 14) - 1)
"""No component of u or v reaches 4, so that z fits 32 bits."""
_Q = 12


def _logistic_table() -> NDArray[np.int64]:
    """2^16 / (1 + 2^-x) for x = -8 .. 8 in steps of 1/64."""
    table = np.empty(1025, np.int64)
    for i in range(513):
        upper = (1 << (_Q + POWER_BITS)) // ((1 << POWER_BITS) + int(two_to_minus(i << (LOG_BITS - 6))))
        table[512 + i], table[512 - i] = upper, (1 << _Q) - upper
    return table


LOGISTIC = _logistic_table()


@compiled
def new_chances() -> Chances:
    """(BUCKETS,): of negative signs, at first what the guess itself says."""
    chances = np.empty(BUCKETS, np.int64)
    for i in range(BUCKETS):
        chances[i] = LOGISTIC[512 + (i - 16) * 16] << (BIT_BITS - _Q)
    return chances


@compiled
def start_factors(count: int, seed: int) -> Factors:
    """(count, FACTORS) random numbers: x <- 1103515245 x + 12345 mod 2^31, bits 8 to 23 of it scaled to START."""
    factors = np.empty((count, FACTORS), np.int32)
    x = seed
    for i in range(count):
        for k in range(FACTORS):
            x = (x * 1103515245 + 12345) & 0x7FFFFFFF
            factors[i, k] = ((((x >> 8) & 0xFFFF) - 0x8000) * START) >> 16
    return factors


@inlined
def code_sign(
    coder: Coder, words: Words, chances: Chances, u: Factors, v: Factors, row: int, col: int, negative: int
) -> tuple[Coder, int]:
    """The sign of a place, written or read, and learned."""
    z = _guess(u, v, row, col)
    number = min(max((z + (1 << (_Q - 3))) >> (_Q - 2), -16), 16) + 16
    chance = min(max(chances[number], 1 << 10), (1 << BIT_BITS) - (1 << 10))
    coder, negative = code_bit(coder, words, chance, negative)
    chances[number] += ((negative << BIT_BITS) - chances[number]) >> RATE
    _learn(u, v, row, col, negative)
    return coder, negative


@inlined
def replay(u: Factors, v: Factors, seen: NDArray[np.int32], count: int) -> None:
    """Learns again from REPLAYS of the `count` places seen so far, rows of (row, column, negative).

    Chosen by a generator of their number alone: y = 2654435761 (REPLAYS count + i) mod 2^32, place y count / 2^32.
    """
    for i in range(REPLAYS):
        y = ((REPLAYS * count + i) * 2654435761) & 0xFFFFFFFF
        n = (y * count) >> 32
        _learn(u, v, seen[n, 0], seen[n, 1], int64(seen[n, 2]))


@inlined
def _guess(u: Factors, v: Factors, row: int, col: int) -> int:
    """z of a place (1)."""
    a, b = u[row], v[col]
    z = np.int32(0)
    for k in range(FACTORS):
        z = np.int32(z + np.int32(a[k] * b[k]))
    return int64(z) >> _Q


@inlined
def _learn(u: Factors, v: Factors, row: int, col: int, negative: int) -> None:
    """Takes in the sign of a place (1), (2), (3). Without loops, so that one instruction does all eight components."""
    a, b = u[row], v[col]
    a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    b0, b1, b2, b3, b4, b5, b6, b7 = b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]
    z01, z23 = np.int32(np.int32(a0 * b0) + np.int32(a1 * b1)), np.int32(np.int32(a2 * b2) + np.int32(a3 * b3))
    z45, z67 = np.int32(np.int32(a4 * b4) + np.int32(a5 * b5)), np.int32(np.int32(a6 * b6) + np.int32(a7 * b7))
    z = int64(np.int32(np.int32(z01 + z23) + np.int32(z45 + z67))) >> _Q
    chance = LOGISTIC[min(max((z >> (_Q - 6)) + 512, 0), 1024)]
    error = np.int32((((negative << _Q) - chance) * STEP) >> 5)
    a[0], a[1], a[2], a[3] = _moved(a0, b0, error), _moved(a1, b1, error), _moved(a2, b2, error), _moved(a3, b3, error)
    a[4], a[5], a[6], a[7] = _moved(a4, b4, error), _moved(a5, b5, error), _moved(a6, b6, error), _moved(a7, b7, error)
    b[0], b[1], b[2], b[3] = _moved(b0, a0, error), _moved(b1, a1, error), _moved(b2, a2, error), _moved(b3, a3, error)
    b[4], b[5], b[6], b[7] = _moved(b4, a4, error), _moved(b5, a5, error), _moved(b6, a6, error), _moved(b7, a7, error)


@inlined
def _moved(own: np.int32, other: np.int32, error: np.int32) -> np.int32:
    """One component after (3), within its limits; all in 32 bits."""
    change = np.int32(np.int32(np.int32(error * other) - np.int32(DECAY * own)) >> np.int32(_Q))
    moved = np.int32(own + change)
    return min(max(moved, np.int32(-LIMIT)), LIMIT)
