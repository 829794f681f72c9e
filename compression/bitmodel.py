"""Adaptive bits, and the small whole numbers made of them.

A *context* is what was seen where a bit stands: p, its chance of being 1 in units of 2^-16, and how often it was used,
n:

    p += ((bit << 16) - p) SHARE[n] >> 16,  SHARE[n] = 2^16 / (n + 1.6),  n at most 60;  p is 2^7 from either end    (1)

A number d is written as: is it 0; if not (and it may be negative) is it negative; then |d| - 1 in unary, each step
with its own context; after UNARY steps what is left in Exp-Golomb with even bits: of the rest + 1 as many 1s as it has
binary digits after the first, a 0, those digits (2).
"""

# ruff: noqa: PLR0917 - compiled functions have no keyword arguments

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compression.compiled import compiled, inlined
from compression.rangecoder import BIT_BITS, code_bit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compression.rangecoder import Coder, Words

    Contexts = NDArray[np.int64]

UNARY = 16
NUMBER_CONTEXTS = UNARY + 2
"""Contexts of one number."""
_EVEN = 1 << (BIT_BITS - 1)
_MARGIN = 1 << 7
_USES = 60
_LONGEST = 12
"""The most digits of an Exp-Golomb rest."""
SHARE = np.array([(10 << BIT_BITS) // (10 * n + 16) for n in range(_USES + 1)], np.int64)


@compiled
def new_contexts(count: int) -> Contexts:
    """(count, 2): even chances, never used."""
    contexts = np.zeros((count, 2), np.int64)
    contexts[:, 0] = _EVEN
    return contexts


@inlined
def code_in_context(coder: Coder, words: Words, contexts: Contexts, number: int, bit: int) -> tuple[Coder, int]:
    """The bit, written or read in context `number`, which learns it (1)."""
    probability, uses = contexts[number, 0], contexts[number, 1]
    coder, bit = code_bit(coder, words, probability, bit)
    probability += (((bit << BIT_BITS) - probability) * SHARE[uses]) >> BIT_BITS
    contexts[number, 0] = min(max(probability, _MARGIN), (1 << BIT_BITS) - _MARGIN)
    contexts[number, 1] = min(uses + 1, _USES)
    return coder, bit


@compiled
def code_number(
    coder: Coder, words: Words, contexts: Contexts, base: int, value: int, signed: bool
) -> tuple[Coder, int]:
    """The number, written or read with the NUMBER_CONTEXTS contexts from `base` on (2); below 2^13 in magnitude."""
    coder, more = code_in_context(coder, words, contexts, base, 1 if value != 0 else 0)
    if not more:
        return coder, 0
    negative = 0
    if signed:
        coder, negative = code_in_context(coder, words, contexts, base + 1, 1 if value < 0 else 0)
    rest, size = abs(value) - 1, 0
    while more and size < UNARY:
        coder, more = code_in_context(coder, words, contexts, base + 2 + size, 1 if rest > size else 0)
        size += more
    if more:
        coder, rest = _code_exp_golomb(coder, words, rest - UNARY)
        size += rest
    return coder, -size - 1 if negative else size + 1


@compiled
def _code_exp_golomb(coder: Coder, words: Words, rest: int) -> tuple[Coder, int]:
    digits, more, value = 0, 1, 1
    while more and digits < _LONGEST:
        coder, more = code_bit(coder, words, _EVEN, 1 if (rest + 1) >> (digits + 1) else 0)
        digits += more
    for i in range(digits - 1, -1, -1):
        coder, digit = code_bit(coder, words, _EVEN, ((rest + 1) >> i) & 1)
        value = 2 * value + digit
    return coder, value - 1
