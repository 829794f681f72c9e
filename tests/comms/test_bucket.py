"""A rate as a function of time: golden answers by hand, and the bound that a limit is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.bucket import HEADER_BYTES, MOST_LATE_S, SEGMENT_BYTES, Bucket, wire_bytes

PACKET_BITS = 8 * 1500


def test_a_full_segment_is_a_packet_and_a_byte_has_headers_of_its_own() -> None:
    assert wire_bytes(SEGMENT_BYTES) == 1500
    assert wire_bytes(1) == 1 + HEADER_BYTES
    assert wire_bytes(SEGMENT_BYTES + 1) == 1500 + 1 + HEADER_BYTES


def test_bytes_leave_one_after_another() -> None:
    bucket = Bucket(PACKET_BITS)  # a packet a second
    assert bucket.reserve(SEGMENT_BYTES, ready_s=10.0, now_s=10.0) == 11.0
    assert bucket.reserve(SEGMENT_BYTES, ready_s=10.0, now_s=10.0) == 12.0


def test_a_pause_saves_nothing_up() -> None:
    bucket = Bucket(PACKET_BITS)
    bucket.reserve(SEGMENT_BYTES, ready_s=0.0, now_s=0.0)
    assert bucket.reserve(SEGMENT_BYTES, ready_s=100.0, now_s=100.0) == 101.0


def test_who_wakes_late_gets_the_time_back_but_not_more_than_the_bound() -> None:
    bucket = Bucket(PACKET_BITS)
    assert bucket.reserve(SEGMENT_BYTES, ready_s=0.0, now_s=0.0) == 1.0
    assert bucket.reserve(SEGMENT_BYTES, ready_s=1.0, now_s=1.2) == 2.0
    assert bucket.reserve(SEGMENT_BYTES, ready_s=2.0, now_s=9.0) == 9.0 - MOST_LATE_S + 1.0


def test_another_rate_counts_from_the_next_bytes_on_and_none_is_no_limit() -> None:
    bucket = Bucket(PACKET_BITS)
    bucket.reserve(SEGMENT_BYTES, ready_s=0.0, now_s=0.0)
    bucket.bits_per_second = 2 * PACKET_BITS
    assert bucket.reserve(SEGMENT_BYTES, ready_s=0.0, now_s=0.0) == 1.5
    bucket.bits_per_second = None
    assert bucket.reserve(10**9, ready_s=7.0, now_s=7.0) == 7.0


@given(
    st.lists(st.tuples(st.integers(1, 70_000), st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=50),
    st.floats(1e4, 1e9),
)
def test_no_window_carries_more_than_its_rate_and_the_lateness(
    chunks: list[tuple[int, float, float]], rate: float
) -> None:
    bucket, now_s, left = Bucket(rate), 0.0, list[tuple[float, int]]()
    for num_bytes, pause_s, late_s in chunks:
        ready_s = now_s + pause_s
        left_s = bucket.reserve(num_bytes, ready_s, ready_s + late_s)
        left.append((left_s, num_bytes))
        now_s = max(left_s, ready_s + late_s)
    for first, (begun_s, _) in enumerate(left):
        within = left[first + 1 :]
        for last, (ended_s, _) in enumerate(within):
            bits = sum(8 * num_bytes for _, num_bytes in within[: last + 1])
            assert bits <= rate * (ended_s - begun_s + MOST_LATE_S) * (1 + 1e-9) + 1e-3


def test_the_bound_is_a_quarter_of_a_second() -> None:
    assert pytest.approx(0.25) == MOST_LATE_S
