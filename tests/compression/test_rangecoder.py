"""Range coder, adaptive bits and numbers: what goes in comes out, in about as many bits as it is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.bitmodel import NUMBER_CONTEXTS, code_in_context, code_number, new_contexts
from compression.compiled import compiled
from compression.rangecoder import begin, code_bit, code_interval, end, target

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.timeout(100)

ENCODE, DECODE = 0, 1
TOP = 1 << 24


def encoded(symbols: list[tuple[int, int]]) -> np.ndarray:
    words = np.zeros(4 * len(symbols) + 4, np.uint16)
    coder = begin(words, ENCODE)
    for first, stop in symbols:
        coder = code_interval(coder, words, first, stop)
    return words[: end(coder, words)]


INTERVALS = st.tuples(st.integers(0, TOP - 1), st.integers(1, TOP)).map(lambda p: (min(p[0], TOP - 1), p[0] + p[1]))
NARROW = st.integers(0, TOP - 1).map(lambda first: (first, first + 1))


@settings(max_examples=200, deadline=None, print_blob=True)
@given(st.lists(st.one_of(INTERVALS.map(lambda i: (i[0], min(i[1], TOP))), NARROW), max_size=60))
def test_intervals_come_back(symbols: list[tuple[int, int]]) -> None:
    words = encoded(symbols)
    coder = begin(words, DECODE)
    for first, stop in symbols:
        assert first <= target(coder) < stop
        coder = code_interval(coder, words, first, stop)
    assert end(coder, words) == len(words)
    worth = sum(math.log2(TOP / (stop - first)) for first, stop in symbols)
    assert 16 * len(words) <= worth + 0.02 * len(symbols) + 34


@pytest.mark.parametrize("last", [TOP - 1, TOP - 2])
def test_story_a_carry_runs_through_many_full_words(last: int) -> None:
    """The upper end of the range again and again fills words with ones; one symbol more turns all of them over."""
    symbols = [(TOP - 1, TOP)] * 40 + [(last, last + 1)] * 3
    words = encoded(symbols)
    coder = begin(words, DECODE)
    for first, stop in symbols:
        assert first <= target(coder) < stop
        coder = code_interval(coder, words, first, stop)
    assert end(coder, words) == len(words)


def test_golden_two_even_bits() -> None:
    """0 takes the upper half: low = 2^47. 1 takes the lower half of that: low = 2^47, range = 2^46. Then 0x8000."""
    words = np.zeros(8, np.uint16)
    coder = begin(words, ENCODE)
    coder, _ = code_bit(coder, words, 1 << 15, 0)
    coder, _ = code_bit(coder, words, 1 << 15, 1)
    assert (coder.low, coder.range) == (1 << 47, 1 << 46)
    assert end(coder, words) == 1
    assert words[0] == 0x8000


@compiled
def _code_bits(words: NDArray[np.uint16], decoding: int, bits: NDArray[np.int64], contexts: NDArray[np.int64]) -> int:
    coder = begin(words, decoding)
    for i in range(len(bits)):
        coder, bits[i] = code_in_context(coder, words, contexts, i % 2, bits[i])
    return end(coder, words)


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_bits_cost_their_entropy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = (rng.random(20_000) < np.tile([0.02, 0.6], 10_000)).astype(np.int64)
    words = np.zeros(len(bits), np.uint16)
    used = _code_bits(words, ENCODE, bits.copy(), new_contexts(2))
    entropy = [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (0.02, 0.6)]
    assert 16 * used < 10_000 * sum(entropy) * 1.03 + 100
    back = np.zeros_like(bits)
    assert _code_bits(words[:used], DECODE, back, new_contexts(2)) == used
    np.testing.assert_array_equal(back, bits)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.lists(st.integers(-4095, 4095), max_size=40), st.booleans())
def test_numbers_come_back(numbers: list[int], signed: bool) -> None:
    if not signed:
        numbers = [abs(n) for n in numbers]
    words = np.zeros(16 * len(numbers) + 4, np.uint16)
    coder, contexts = begin(words, ENCODE), new_contexts(NUMBER_CONTEXTS)
    for number in numbers:
        coder, written = code_number(coder, words, contexts, 0, number, signed)
        assert written == number
    words = words[: end(coder, words)]
    coder, contexts = begin(words, DECODE), new_contexts(NUMBER_CONTEXTS)
    for number in numbers:
        coder, read = code_number(coder, words, contexts, 0, 0, signed)
        assert read == number
    assert end(coder, words) == len(words)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.binary(max_size=60))
def test_noise_decodes_to_something_and_stops(noise: bytes) -> None:
    words = np.frombuffer(noise[: len(noise) // 2 * 2], np.uint16).copy()
    coder, contexts = begin(words, DECODE), new_contexts(NUMBER_CONTEXTS)
    for _ in range(30):
        coder, number = code_number(coder, words, contexts, 0, 0, True)
        assert abs(number) < 1 << 14
        assert 0 <= coder.low < coder.range <= 1 << 48
