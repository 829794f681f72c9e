"""Rice codes: golden bits, lossless, and close to the uniform bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import PayloadError
from compression.entropy import uniform_bound_bits
from compression.layout import ChunkLayout
from compression.quantizer import QUANTIZERS
from compression.quota import Quota
from compression.rice import Rice, rice_bits
from compression.streams import Symbols

pytestmark = pytest.mark.timeout(60)

CODER, SIGN = Rice(), QUANTIZERS["sign-magnitude", 1]


def test_golden_bits() -> None:
    """C = 16, k = 2: 45 * 14 / (64 * 3) = 3, b = 1. Gaps 5 and 0: 2 and 0 times 2, rests 1 and 0."""
    quota = Quota(ChunkLayout({"w": (4, 4)}, 16), 2)
    assert rice_bits(quota) == 1
    symbols = Symbols(np.array([5, 6], np.uint16), np.array([0x7F0], np.uint16), np.array([1, 0], np.uint8))
    streams = CODER.encode(symbols, quota, SIGN)
    assert streams == [bytes([0b1100]), bytes([0b01]), b"\xf0\x07", bytes([0b01])]
    again = CODER.decode([memoryview(s) for s in streams], quota, SIGN)
    assert again.places.tolist() == [5, 6]


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.lists(st.lists(st.integers(1, 30), max_size=2).map(tuple), min_size=1, max_size=3),
    st.sampled_from([1, 4, 64]), st.integers(1, 64), st.integers(0, 2**32), st.sampled_from(list(QUANTIZERS)),
)  # fmt: skip
def test_any_places_come_back(
    shapes: list[tuple[int, ...]], chunk: int, k: int, seed: int, kind: tuple[str, int]
) -> None:
    quantizer = QUANTIZERS[kind]
    quota = Quota(ChunkLayout({str(i): shape for i, shape in enumerate(shapes)}, chunk), min(k, chunk))
    rng = np.random.default_rng(seed)
    places = [np.sort(rng.choice(chunk, count, replace=False)) for count in quota.counts]
    symbols = Symbols(
        np.concatenate(places).astype(np.uint16),
        rng.integers(0, 2**quantizer.level_bits, quantizer.num_levels(quota), np.uint32),
        rng.integers(0, 2**quantizer.code_bits, quota.total, np.uint32),
    )
    streams = CODER.encode(symbols, quota, quantizer)
    for stream, (least, most) in zip(streams, CODER.limits(quota, quantizer), strict=True):
        assert least <= len(stream) <= most
    again = CODER.decode([memoryview(s) for s in streams], quota, quantizer)
    for name in ("places", "levels", "codes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(symbols, name))


@pytest.mark.parametrize(("k", "above"), [(32, 0.2), (64, 0.15), (128, 0.15)])
def test_places_cost_little_more_than_the_uniform_bound_and_what_is_expected(k: int, above: float) -> None:
    quota = Quota(ChunkLayout({"w": (1024, 1024)}, 4096), k)
    rng = np.random.default_rng(0)
    places = np.concatenate([np.sort(rng.choice(4096, k, replace=False)) for _ in range(256)]).astype(np.uint16)
    symbols = Symbols(places, np.zeros(256, np.uint16), np.zeros(quota.total, np.uint8))
    streams = CODER.encode(symbols, quota, SIGN)
    assert 8 * (len(streams[0]) + len(streams[1])) < uniform_bound_bits(quota) + above * quota.total
    assert sum(CODER.expected(quota, SIGN)) == pytest.approx(sum(map(len, streams)), rel=0.01)


@pytest.mark.parametrize(
    ("quotients", "message"),
    [([0b0100], "quotients: 1 of them"), ([0b11100], "quotients: 3 of them"), ([0b1100, 0], "bytes follow"),
     ([0, 0, 0b11], "places: 34 is not below the chunk")],
)  # fmt: skip
def test_quotients_that_do_not_fit_are_refused(quotients: list[int], message: str) -> None:
    quota = Quota(ChunkLayout({"w": (4, 4)}, 16), 2)
    streams = [bytes(quotients), bytes([0b01]), b"\xf0\x07", bytes([0b01])]
    with pytest.raises(PayloadError, match=message):
        CODER.decode([memoryview(s) for s in streams], quota, SIGN)
