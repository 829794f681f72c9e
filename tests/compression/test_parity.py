"""The settings of the published code together: divisor chunks, its quantizer, its aggregation. Worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.aggregate import aggregate
from compression.codec import Codec, Layout, PayloadError, Update
from compression.layout import ChunkLayout
from compression.registry import CoderName, codec_for

pytestmark = pytest.mark.timeout(60)

SHAPES = {"w": (6, 4), "b": (6,)}


def parity(method: str = "sparseloco") -> tuple[Codec, Layout]:
    """C = 16, so blocks of at most 4 x 4: the divisors are 3 of 6 and 4 of 4; vectors are cut in threes. k = 2."""
    codec = codec_for(method, chunk=16, k=2, quantizer="statistical", chunking="divisor")  # type: ignore[arg-type]
    return codec, codec.layout(SHAPES)


def sent(codec: Codec, layout: Layout, w: dict[tuple[int, int], float], b: list[float]) -> Update:
    """What the others get of a replica whose matrix holds `w` and, elsewhere, a tenth of nothing much."""
    matrix = torch.full((6, 4), 0.125)
    for place, value in w.items():
        matrix[place] = value
    return codec.decode(
        codec.encode(layout.pack({"w": matrix, "b": torch.tensor(b, dtype=torch.float32)}), layout), layout
    )


def test_golden_blocks_are_divisors_of_the_dimensions() -> None:
    _, layout = parity()
    assert isinstance(layout, ChunkLayout)
    assert [(span.height, span.width, span.num_chunks) for span in layout.spans] == [(3, 4, 2), (1, 3, 2)]
    assert layout.num_real.tolist() == [12, 12, 3, 3]
    flat = layout.pack({"w": torch.arange(24.0).view(6, 4), "b": torch.arange(6.0)})
    assert flat.view(4, 16).tolist() == [
        [*range(12), 0, 0, 0, 0],
        [*range(12, 24), 0, 0, 0, 0],
        [0, 1, 2, *[0] * 13],
        [3, 4, 5, *[0] * 13],
    ]
    assert torch.equal(layout.unpack(flat)["w"], torch.arange(24.0).view(6, 4))
    assert torch.equal(layout.unpack(flat)["b"], torch.arange(6.0))


@pytest.mark.parametrize("method", ["sparseloco", "sparseloco-reference-wire"])
def test_golden_two_replicas_from_values_to_the_aggregate(method: str) -> None:
    """Of each block the two largest; per tensor bins of 1.5 sigma around the mean; divided by those that sent a place.

    One, w: 2, -2, 1.375, -1.375. Mean 0, sigma sqrt(11.78 / 3) = 1.98, step 2.97. 2 is 0.67 steps: an outer bin, and
    1.375 is 0.46, in the middle bin, whose mean is 0. So 2, -2, 0, 0.
    Two, w: 4, -8, 6, -2. Mean 0, sigma sqrt(120 / 3) = 6.32, step 9.49. 4 and -2 fall in the middle, mean 1. So
    1, -8, 6, 1.
    One, b: of 5 1 3 and 7 -1 0 are kept 5, 3, 7, -1. Mean 3.5, sigma sqrt(35 / 3) = 3.42, step 5.12; off by 1.5, -0.5,
    3.5, -4.5: 5 and 3 in the middle, mean 4. So 4, 4, 7, -1.
    Two, b: six times 2, of which the lowest places of each three are kept; sigma 0, step 1, all in the middle. So 2.
    """
    codec, layout = parity(method)
    one = sent(codec, layout, {(0, 1): 2, (2, 3): -2, (3, 0): 1.375, (5, 2): -1.375}, [5, 1, 3, 7, -1, 0])
    two = sent(codec, layout, {(0, 1): 4, (1, 0): -8, (3, 0): 6, (4, 1): -2}, [2.0] * 6)
    assert one.values.tolist() == [2, -2, 0, 0, 4, 4, 7, -1]
    assert two.values.tolist() == [1, -8, 6, 1, 2, 2, 2, 2]
    got = layout.unpack(aggregate([one, two], [1, 1], "contributors", layout.num_values, False))
    wanted = torch.zeros(6, 4)
    for place, value in {(0, 1): 1.5, (2, 3): -2, (1, 0): -8, (3, 0): 3, (5, 2): 0, (4, 1): 1}.items():
        wanted[place] = value
    assert torch.equal(got["w"], wanted)
    assert got["b"].tolist() == [3, 2, 4, 4.5, 0.5, 0]


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    st.lists(st.lists(st.integers(1, 20), max_size=3).map(tuple), min_size=1, max_size=3),
    st.sampled_from(["entropy", "rice", "fixed"]),
    st.sampled_from([1, 2]),
    st.integers(0, 2**32),
)
def test_divisor_chunks_of_any_shape_come_back_from_every_coder(
    shapes: list[tuple[int, ...]], coder: CoderName, bits: int, seed: int
) -> None:
    codec = codec_for("sparseloco", chunk=16, k=3, value_bits=bits, coder=coder, chunking="divisor")
    layout = codec.layout({str(i): shape for i, shape in enumerate(shapes)})
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) + 2 for name, shape in layout.shapes.items()}
    update = codec.decode(codec.encode(layout.pack(tensors), layout), layout)
    flat = torch.zeros(layout.num_values)
    update.add_to(flat)
    assert len(update.values) == codec.num_values(layout)
    assert sum(int((t != 0).sum()) for t in layout.unpack(flat).values()) == int((flat != 0).sum())
    for name, tensor in layout.unpack(flat).items():
        held = tensor != 0
        assert torch.equal(tensor[held].sign(), tensors[name][held].sign())


def test_a_member_that_pads_refuses_one_that_divides() -> None:
    codec, layout = parity()
    padding = codec_for("sparseloco", chunk=16, k=2, quantizer="statistical")
    payload = codec.encode(layout.pack({name: torch.ones(shape) for name, shape in SHAPES.items()}), layout)
    with pytest.raises(PayloadError, match="chunking: 1, expected 0"):
        padding.decode(payload, padding.layout(SHAPES))
    with pytest.raises(TypeError, match="needs the layout that its own"):
        padding.decode(payload, layout)


def test_a_tensor_that_divisors_would_shred_is_refused() -> None:
    """4099 is prime: 4099 chunks of 1 value, each with 4095 zeros."""
    assert ChunkLayout({"v": (67,)}, 4096, "divisor").num_chunks == 67
    with pytest.raises(
        ValueError, match=r"'w' \(4099, 67\): chunking = \"divisor\" would cut it in chunks of 1 values"
    ):
        ChunkLayout({"w": (4099, 67)}, 4096, "divisor")
