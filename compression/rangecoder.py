"""A range coder: symbols to 16-bit words and back, each symbol an interval of the range that is left.

    range in (2^32, 2^48],  low < 2^48,  words hold what lies above low                                  (1)
    interval [a, b) of 2^24:  r = range >> 24;  low += r a;  range = r (b - a), all that is left if b = 2^24   (2)
    bit with probability p / 2^16 of being 1:  1 takes the lower (range >> 16) p, 0 the rest             (3)
    while range <= 2^32:  the upper 16 bits of low become a word, a carry goes into the words before     (4)
    end:  one word more, the upper 16 bits of low + 2^32 - 1                                             (5)

The decoder keeps `code` minus low; it begins with three words and takes zeros after the last one, so n words mean that
(4) happened n - 1 times: any other number is refused. The same functions encode and decode: they take the symbol (if
encoding) and return it, with the coder's new state.

Differs: nothing in it is new (Martin 1979); the widths are ours, for one 64-bit register and few carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from compression.compiled import compiled, inlined, int64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint16]

INTERVAL_BITS = 24
"""Interval bounds are in units of 2^-24 of the range."""
BIT_BITS = 16
"""Probabilities of bits are in units of 2^-16."""
_LOW_BITS = 48
_LOW_MASK = (1 << 48) - 1
_LEAST_RANGE = 1 << 32
_FULL_WORD = 0xFFFF


class Coder(NamedTuple):
    """Where coding stands."""

    low: int
    """Decoding: code minus low."""
    range: int
    position: int
    """Words written or read."""
    decoding: int
    """1 or 0."""


@compiled
def begin(words: Words, decoding: int) -> Coder:
    """The state before the first symbol."""
    low = int64(0)
    if decoding:
        for position in range(3):
            low = low << 16 | _word(words, position)
        return Coder(low, int64(1 << _LOW_BITS), int64(3), int64(1))
    return Coder(low, int64(1 << _LOW_BITS), int64(0), int64(0))


@inlined
def target(coder: Coder) -> int:
    """Decoding: which of the 2^24 units the next symbol's interval holds."""
    return min(coder.low // (coder.range >> INTERVAL_BITS), (1 << INTERVAL_BITS) - 1)


@inlined
def code_interval(coder: Coder, words: Words, first: int, stop: int) -> Coder:
    """Writes, or takes in, the symbol with the interval [first, stop) of 2^24 (2)."""
    unit = coder.range >> INTERVAL_BITS
    span = unit * (stop - first)
    if stop >> INTERVAL_BITS:
        span = coder.range - unit * first
    return _narrowed(coder, words, unit * first, span)


@inlined
def code_bit(coder: Coder, words: Words, probability: int, bit: int) -> tuple[Coder, int]:
    """The bit, written or read, that is 1 with `probability` in 1 .. 2^16 - 1 (3)."""
    bound = (coder.range >> BIT_BITS) * probability
    if coder.decoding:
        bit = 1 if coder.low < bound else 0
    offset, span = bound, coder.range - bound
    if bit:
        offset, span = 0, bound
    return _narrowed(coder, words, offset, span), bit


@compiled
def end(coder: Coder, words: Words) -> int:
    """How many words there are, or must be (5)."""
    if coder.decoding:
        return coder.position - 2
    low = _sum(coder, words, _LEAST_RANGE - 1)
    words[coder.position] = low >> 32
    return coder.position + 1


@inlined
def _narrowed(coder: Coder, words: Words, offset: int, span: int) -> Coder:
    """With `span` of the range left, `offset` from its lower end (4)."""
    position = coder.position
    if coder.decoding:
        low = coder.low - offset
        while span <= _LEAST_RANGE:
            low = low << 16 | _word(words, position)
            position += 1
            span <<= 16
    else:
        low = _sum(coder, words, offset)
        while span <= _LEAST_RANGE:
            words[position] = low >> 32
            position += 1
            low = (low << 16) & _LOW_MASK
            span <<= 16
    return Coder(low, span, position, coder.decoding)


@inlined
def _sum(coder: Coder, words: Words, offset: int) -> int:
    """low + offset, its carry gone into the words already written."""
    low = coder.low + offset
    if low >> _LOW_BITS:
        low &= _LOW_MASK
        position = coder.position - 1
        while words[position] == _FULL_WORD:
            words[position] = 0
            position -= 1
        words[position] += 1
    return low


@inlined
def _word(words: Words, position: int) -> int:
    """A word, 0 after the last one."""
    return int64(words[position]) if position < len(words) else int64(0)
