"""Packed integers: golden bytes, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression import bits
from compression.codec import PayloadError

pytestmark = pytest.mark.timeout(60)


def test_golden() -> None:
    assert bits.pack(np.array([1, 0, 1, 1], np.uint8), 1) == bytes([0b1101])
    assert bits.pack(np.array([1, 2, 3, 0, 2], np.uint8), 2) == bytes([0b00111001, 0b10])
    assert bits.pack(np.array([0x123, 0xABC, 0xFED], np.uint16), 12) == bytes([0x23, 0xC1, 0xAB, 0xED, 0x0F])
    assert bits.pack(np.array([0x01020304], np.uint32), 32) == bytes([4, 3, 2, 1])


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.integers(1, 64), st.integers(0, 70), st.randoms(use_true_random=False), st.sampled_from([8, 16, 1 << 19]))
def test_round_trip_any_width(width: int, count: int, random: object, slab: int) -> None:
    values = np.array([random.getrandbits(width) for _ in range(count)], np.uint64)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "SLAB_VALUES", slab)
        stream = bits.pack(values, width)
        assert len(stream) == bits.num_bytes(width, count)
        assert int.from_bytes(stream, "little") == sum(int(v) << (i * width) for i, v in enumerate(values))
        assert bits.unpack(memoryview(stream), width, count, "x").tolist() == values.tolist()


def test_bits_after_the_last_value_are_refused() -> None:
    with pytest.raises(PayloadError, match="places: the bits after the last value"):
        bits.unpack(memoryview(bytes([0b10000000])), 2, 3, "places")
