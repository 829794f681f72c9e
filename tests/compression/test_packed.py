"""What a device other than the CPU does: the same bytes, by torch operations, and few of them copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.layout import Chunking, ChunkLayout
from compression.packed import packed, symbols_of, unpacked
from compression.quantizer import QUANTIZERS, Quantizer
from compression.quota import Quota
from compression.registry import codec_for
from compression.streams import FixedWidth

pytestmark = pytest.mark.timeout(60)

KINDS = ["normal", "ties", "zeros", "spread", "denormal", "huge"]


def drawn(layout: ChunkLayout, kind: str, seed: int) -> torch.Tensor:
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in layout.shapes.items():
        values = torch.randn(shape, generator=generator)
        if kind == "ties":
            values = values.round()
        elif kind == "zeros":
            values = values * (torch.rand(shape, generator=generator) < 0.1)
        elif kind == "spread":
            values = values.sign() * torch.exp2(values * 30)
        elif kind == "denormal":
            values = values * 1e-41
        elif kind == "huge":
            values = (values * 3e38).clamp(-3e38, 3e38)
        tensors[name] = values
    return layout.pack(tensors)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.lists(st.lists(st.integers(1, 20), max_size=2).map(tuple), min_size=1, max_size=3),
    st.sampled_from([4, 16, 64]),
    st.integers(1, 64),
    st.sampled_from(list(QUANTIZERS.values())),
    st.sampled_from(["padded", "divisor"]),
    st.sampled_from(KINDS),
    st.integers(0, 2**32),
)
def test_equality_with_the_path_of_the_cpu(  # noqa: PLR0917
    shapes: list[tuple[int, ...]], chunk: int, k: int, quantizer: Quantizer, chunking: Chunking, kind: str, seed: int
) -> None:
    layout = ChunkLayout({str(i): shape for i, shape in enumerate(shapes)}, chunk, chunking)
    quota, flat = Quota(layout, min(k, chunk)), drawn(layout, kind, seed)
    here, there = symbols_of(flat, quota, quantizer), unpacked(packed(flat, quota, quantizer), quota, quantizer)
    for name in ("places", "levels", "codes"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name), err_msg=name)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("k", [64, 128])
def test_the_stream_is_the_fixed_width_payload_and_all_that_is_copied(bits: int, k: int) -> None:
    """12 bits a place, one or two a code, 12 a level: under 1 % of the fragment's bytes at k = 64."""
    quantizer = QUANTIZERS["sign-magnitude", bits]
    layout = ChunkLayout({"w": (320, 256), "b": (5000,)}, 4096)
    quota, flat = Quota(layout, k), drawn(layout, "normal", 0)
    stream = packed(flat, quota, quantizer)
    assert stream.dtype == torch.uint8
    assert stream.numpy().tobytes() == b"".join(
        FixedWidth().encode(symbols_of(flat, quota, quantizer), quota, quantizer)
    )
    assert len(stream) == sum(-(-n // 8) for n in (12 * quota.total, 12 * bits * layout.num_chunks, bits * quota.total))
    assert 4 * len(flat) > len(stream) * 100 * 64 / k * 1.05


@pytest.mark.parametrize("slab", [8, 64])
def test_slabs_change_nothing(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = QUANTIZERS["sign-magnitude", 2]
    layout = ChunkLayout({"w": (40, 30)}, 64)
    quota, flat = Quota(layout, 5), drawn(layout, "ties", 1)
    whole = packed(flat, quota, quantizer)
    monkeypatch.setattr("compression.bits.SLAB_VALUES", slab)
    monkeypatch.setattr("compression.topk.SLAB_VALUES", 128)
    assert torch.equal(packed(flat, quota, quantizer), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "bits"), [(64, 2), (64, 1), (128, 2), (4096, 32)])
def test_equality_of_the_bytes_from_a_gpu(k: int, bits: int, kind: str) -> None:
    codec = codec_for("sparseloco", k=k, value_bits=bits)
    layout = codec.layout({"w": (700, 300), "e": (640, 512), "b": (333,)})
    assert isinstance(layout, ChunkLayout)
    flat = drawn(layout, kind, 0)
    there = flat.cuda()
    assert packed(there, Quota(layout, k), QUANTIZERS["sign-magnitude", bits]).is_cuda
    assert codec.encode(there, layout) == codec.encode(flat, layout)
