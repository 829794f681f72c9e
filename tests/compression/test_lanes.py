"""Lanes: every chunk in exactly one, tensors whole where they can be, the load spread."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression import lanes
from compression.codec import Shapes
from compression.lanes import lanes_of
from compression.layout import ChunkLayout
from compression.quota import Quota

pytestmark = pytest.mark.timeout(60)


def quota(shapes: Shapes, chunk: int = 4, k: int = 2) -> Quota:
    return Quota(ChunkLayout(shapes, chunk), k)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.lists(st.lists(st.integers(1, 60), min_size=0, max_size=2).map(tuple), min_size=1, max_size=6),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 9),
)
def test_conservation_every_chunk_and_value_is_in_one_lane(shapes: list[tuple[int, ...]], chunk: int, k: int) -> None:
    q = quota({str(i): shape for i, shape in enumerate(shapes)}, chunk, min(k, chunk))
    slabs = sorted((slab for lane in lanes_of(q) for slab in lane), key=lambda slab: slab.first_chunk)
    at = value = 0
    for slab in slabs:
        assert (slab.first_chunk, slab.first_value) == (at, value)
        at, value = at + slab.num_chunks, value + slab.num_values
        assert slab.num_values == q.counts[slab.first_chunk : at].sum()
        assert (slab.down, slab.across) == (-(-slab.rows // slab.height), -(-slab.cols // slab.width))
    assert (at, value) == (q.layout.num_chunks, q.total)


def test_golden_the_largest_go_first_to_the_least_loaded() -> None:
    """Chunks: a 200, b 100, c 90, d 60: 450 are 4 lanes. Without a 250 are 2: first b, then c, then d beside c."""
    names = {"d": (12, 20), "a": (20, 40), "b": (20, 20), "c": (18, 20)}
    assert [[slab.num_chunks for slab in lane] for lane in lanes_of(quota(names))] == [[200], [100], [90], [60]]
    del names["a"]
    assert [[slab.num_chunks for slab in lane] for lane in lanes_of(quota(names))] == [[100], [60, 90]]


def test_a_large_tensor_is_cut_between_rows_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SLAB_CHUNKS", 100)
    slabs = [slab for lane in lanes_of(quota({"a": (47, 60)})) for slab in lane]
    assert sorted((slab.first_chunk, slab.down, slab.rows) for slab in slabs) == [
        (0, 3, 6), (90, 3, 6), (180, 3, 6), (270, 3, 6), (360, 3, 6), (450, 3, 6), (540, 3, 6), (630, 3, 5),
    ]  # fmt: skip


def test_a_small_fragment_has_one_lane() -> None:
    assert len(lanes_of(quota({"a": (20, 20), "b": (10, 10)}))) == 1
