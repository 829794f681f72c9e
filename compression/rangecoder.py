"""A range coder: symbols to 16-bit words and back, each symbol an interval of the range that is left.

    range in (2^32, 2^48],  low < 2^48,  words hold what lies above low                                  (1)
    interval [a, b) of 2^24:  r = range >> 24;  low += r a;  range = r (b - a), all that is left if b = 2^24   (2)
    bit with probability p / 2^16 of being 1:  1 takes the lower (range >> 16) p, 0 the rest             (3)
    while range <= 2^32:  the upper 16 bits of low become a word, a carry goes into the words before     (4)
    end:  one word more, the upper 16 bits of low + 2^32 - 1                                             (5)

The decoder keeps `code` minus low; it begins with three words and takes zeros after the last one, so n words mean that
(4) happened n - 1 times: any other number is refused. The same functions encode and decode: they take the symbol (if
encoding) and return it. `state` is (low or difference, range, words written or read, 1 if decoding).

Differs: nothing in it is new (Martin 1979); the widths are ours, for one 64-bit register and few carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    State = NDArray[np.int64]
    Words = NDArray[np.uint16]

LOW, RANGE, POSITION, DECODING = range(4)
INTERVAL_BITS = 24
"""Interval bounds are in units of 2^-24 of the range."""
BIT_BITS = 16
"""Probabilities of bits are in units of 2^-16."""
_LOW_BITS = 48
_LOW_MASK = (1 << 48) - 1
_LEAST_RANGE = 1 << 32


@njit(cache=True, nogil=True, error_model="numpy")
def begin(words: Words, decoding: bool) -> State:
    """The state before the first symbol."""
    state = np.zeros(4, np.int64)
    state[RANGE] = 1 << _LOW_BITS
    if decoding:
        state[DECODING] = 1
        for _ in range(3):
            state[LOW] = state[LOW] << 16 | _next(state, words)
    return state


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def target(state: State) -> int:
    """Decoding: which of the 2^24 units the next symbol's interval holds."""
    return min(state[LOW] // (state[RANGE] >> INTERVAL_BITS), (1 << INTERVAL_BITS) - 1)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def code_interval(state: State, words: Words, first: int, stop: int) -> None:
    """Writes, or takes in, the symbol with the interval [first, stop) of 2^24 (2)."""
    unit = state[RANGE] >> INTERVAL_BITS
    if stop >> INTERVAL_BITS:
        span = state[RANGE] - unit * first
    else:
        span = unit * (stop - first)
    _narrow(state, words, unit * first, span)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def code_bit(state: State, words: Words, probability: int, bit: int) -> int:
    """The bit, written or read, that is 1 with `probability` in 1 .. 2^16 - 1 (3)."""
    bound = (state[RANGE] >> BIT_BITS) * probability
    if state[DECODING]:
        bit = 1 if state[LOW] < bound else 0
    if bit:
        _narrow(state, words, 0, bound)
    else:
        _narrow(state, words, bound, state[RANGE] - bound)
    return bit


@njit(cache=True, nogil=True, error_model="numpy")
def end(state: State, words: Words) -> int:
    """How many words there are, or must be (5)."""
    if state[DECODING]:
        return state[POSITION] - 2
    _add(state, words, _LEAST_RANGE - 1)
    words[state[POSITION]] = state[LOW] >> 32
    return state[POSITION] + 1


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _narrow(state: State, words: Words, offset: int, span: int) -> None:
    """To `span` of the range, `offset` from its lower end (4)."""
    if state[DECODING]:
        state[LOW] -= offset
        while span <= _LEAST_RANGE:
            state[LOW] = state[LOW] << 16 | _next(state, words)
            span <<= 16
    else:
        _add(state, words, offset)
        while span <= _LEAST_RANGE:
            words[state[POSITION]] = state[LOW] >> 32
            state[POSITION] += 1
            state[LOW] = (state[LOW] << 16) & _LOW_MASK
            span <<= 16
    state[RANGE] = span


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _add(state: State, words: Words, offset: int) -> None:
    """low += offset, the carry into the words already written."""
    state[LOW] += offset
    if state[LOW] >> _LOW_BITS:
        state[LOW] &= _LOW_MASK
        position = state[POSITION] - 1
        while words[position] == 0xFFFF:  # noqa: PLR2004
            words[position] = 0
            position -= 1
        words[position] += 1


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _next(state: State, words: Words) -> int:
    """The next word, 0 after the last one."""
    position = state[POSITION]
    state[POSITION] = position + 1
    return np.int64(words[position]) if position < len(words) else np.int64(0)
