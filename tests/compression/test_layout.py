"""Packing loses nothing, invents nothing, and knows what is padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.layout import CHUNKINGS, Chunking, ChunkLayout, FlatLayout

pytestmark = pytest.mark.timeout(60)

SHAPES = st.dictionaries(
    st.text("abc.ü", min_size=1, max_size=5),
    st.lists(st.integers(1, 13), max_size=4).map(tuple),
    min_size=1,
    max_size=4,
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
CHUNKS = st.sampled_from([1, 4, 9, 16, 64, 256])


def numbered(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Tensors in which every value is another small integer, exact in any of the types."""
    tensors, start = {}, 1
    for name, shape in shapes.items():
        tensors[name] = ((torch.arange(math.prod(shape)) + start) % 251 + 1).to(dtype).view(shape)
        start += math.prod(shape)
    return tensors


@settings(max_examples=80, deadline=None, print_blob=True)
@given(SHAPES, CHUNKS, DTYPES)
def test_round_trip_and_conservation_for_any_shape(
    shapes: dict[str, tuple[int, ...]], chunk: int, dtype: torch.dtype
) -> None:
    tensors = numbered(shapes, dtype)
    for layout in (FlatLayout(shapes), ChunkLayout(shapes, chunk), ChunkLayout(shapes, chunk, "divisor")):
        flat = layout.pack(tensors)
        assert flat.dtype == torch.float32
        assert flat.shape == (layout.num_values,)
        back = layout.unpack(flat)
        assert list(back) == list(shapes)
        for name, tensor in tensors.items():
            assert torch.equal(back[name], tensor.float())
        assert flat.double().sum() == sum(tensor.double().sum() for tensor in tensors.values())


@settings(max_examples=80, deadline=None, print_blob=True)
@given(SHAPES, CHUNKS, st.sampled_from(CHUNKINGS))
def test_real_places_are_those_that_pack_fills(
    shapes: dict[str, tuple[int, ...]], chunk: int, chunking: Chunking
) -> None:
    layout = ChunkLayout(shapes, chunk, chunking)
    filled = (layout.pack(numbered(shapes)) != 0).numpy().reshape(-1, chunk)
    real = layout.is_real(np.arange(layout.num_chunks)[:, None], np.arange(chunk)[None])
    np.testing.assert_array_equal(filled, real)
    np.testing.assert_array_equal(filled.sum(axis=1), layout.num_real)
    np.testing.assert_array_equal(np.flatnonzero(~filled.all(axis=1)), layout.partial)


def test_golden_a_matrix_goes_block_by_block() -> None:
    layout = ChunkLayout({"w": (3, 5), "b": (3,)}, 4)
    matrix = torch.tensor([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]])
    flat = layout.pack({"w": matrix, "b": torch.tensor([21.0, 22, 23])})
    assert flat.view(-1, 4).tolist() == [
        [1, 2, 6, 7],
        [3, 4, 8, 9],
        [5, 0, 10, 0],
        [11, 12, 0, 0],
        [13, 14, 0, 0],
        [15, 0, 0, 0],
        [21, 22, 23, 0],
    ]
    assert layout.num_real.tolist() == [4, 4, 2, 2, 2, 1, 3]
    assert [layout.span_of(chunk).name for chunk in (0, 5, 6)] == ["w", "w", "b"]


def test_leading_dimensions_are_folded_into_rows() -> None:
    tensor = torch.arange(24.0).view(2, 3, 4)
    folded = ChunkLayout({"w": (6, 4)}, 4).pack({"w": tensor.view(6, 4)})
    assert torch.equal(ChunkLayout({"w": (2, 3, 4)}, 4).pack({"w": tensor}), folded)


def test_a_transposed_tensor_is_packed_by_its_values() -> None:
    tensor = torch.arange(24.0).view(4, 6).t()
    layout = ChunkLayout({"w": (6, 4)}, 4)
    assert torch.equal(layout.unpack(layout.pack({"w": tensor}))["w"], tensor)


def test_story_a_prime_dimension_is_padded_not_shredded() -> None:
    """A chunker that looks for divisors cuts 4099 values in 4099 chunks of one, and compresses nothing."""
    layout = ChunkLayout({"v": (4099,), "m": (127, 131)}, 4096)
    assert layout.num_chunks == 2 + 2 * 3
    assert layout.num_real.sum() == 4099 + 127 * 131


def test_a_vector_shares_the_memory_of_the_buffer() -> None:
    layout = ChunkLayout({"b": (3,)}, 4)
    flat = torch.zeros(4)
    layout.unpack(flat)["b"][2] = 7
    assert flat.tolist() == [0, 0, 7, 0]


@pytest.mark.parametrize("chunk", [0, -4, 2, 5000, 257 * 257])
def test_a_chunk_that_is_no_square_is_refused(chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk = {chunk} "):
        ChunkLayout({"w": (2, 2)}, chunk)


def test_empty_tensors_and_fragments_are_refused() -> None:
    for make in (FlatLayout, lambda shapes: ChunkLayout(shapes, 4)):
        with pytest.raises(ValueError, match=r"'w' of shape \(3, 0\) is empty"):
            make({"w": (3, 0)})
        with pytest.raises(ValueError, match="no tensors"):
            make({})


def test_other_tensors_than_the_layouts_are_refused() -> None:
    layout = ChunkLayout({"w": (2, 2)}, 4)
    with pytest.raises(ValueError, match="w, x on one side only"):
        layout.pack({"x": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"'w' is \(4,\); the layout has \(2, 2\)"):
        layout.pack({"w": torch.zeros(4)})
    with pytest.raises(ValueError, match="only floating-point"):
        layout.pack({"w": torch.zeros(2, 2, dtype=torch.int32)})
    for flat in (torch.zeros(5), torch.zeros(4, dtype=torch.float64), torch.zeros(8)[::2]):
        with pytest.raises(ValueError, match="this layout has contiguous"):
            layout.unpack(flat)
