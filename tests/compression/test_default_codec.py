"""The codec that a run uses: any tensors in, the same update as with fixed widths out, in fewer bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compression.aggregate import aggregate
from compression.codec import PayloadError
from compression.feedback import ErrorFeedback
from compression.registry import codec_for

pytestmark = pytest.mark.timeout(100)

SHAPES: list[tuple[int, ...]] = [
    (),
    (1,),
    (7,),
    (4099,),
    (64, 64),
    (127, 131),
    (1, 300),
    (300, 1),
    (3, 5, 70),
    (257, 64),
]
KINDS = ["normal", "zeros", "equal", "denormal", "outlier", "unused rows", "ties"]


def made(shape: tuple[int, ...], kind: str, dtype: torch.dtype, seed: int) -> Tensor:
    """A tensor of one of the KINDS."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "zeros":
        values = torch.zeros(shape)
    elif kind == "equal":
        values = torch.full(shape, -0.25)
    elif kind == "denormal":
        values = values * 1e-41
    elif kind == "outlier":
        values = values.clone()
        values.view(-1)[seed % values.numel()] = 3e4 if dtype == torch.float16 else 3e38
    elif kind == "unused rows" and len(shape) > 1:
        values[::3] = 0
    elif kind == "ties":
        values = values.round()
    return values.to(dtype)


@settings(max_examples=120, deadline=None, print_blob=True)
@given(
    st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(KINDS)), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 64, 4096]),
    st.integers(0, 2**32),
)
def test_equality_with_fixed_widths_for_any_tensors(
    tensors: list[tuple[tuple[int, ...], str]], dtype: torch.dtype, bits: int, k: int, seed: int
) -> None:
    named = {f"w{i}": made(shape, kind, dtype, seed + i) for i, (shape, kind) in enumerate(tensors)}
    plain = codec_for("sparseloco", k=k, value_bits=bits, coder="fixed")
    layout = plain.layout({name: tuple(t.shape) for name, t in named.items()})
    flat = layout.pack(named)
    wanted = plain.decode(plain.encode(flat, layout), layout)
    for coder in ("entropy", "rice"):
        codec = codec_for("sparseloco", k=k, value_bits=bits, coder=coder)
        payload = codec.encode(flat, layout)
        update = codec.decode(payload, layout)
        assert update.positions is not None
        assert wanted.positions is not None
        assert torch.equal(update.positions, wanted.positions)
        assert torch.equal(update.values, wanted.values)
        assert codec.encode(flat, layout) == payload
        with pytest.raises(PayloadError):
            plain.decode(payload, layout)


def test_story_many_rounds_send_everything_in_the_end() -> None:
    """A constant change, no decay: what is sent adds up to what was wanted, less what is still held back."""
    codec, feedback = codec_for("sparseloco", chunk=64, k=8), ErrorFeedback(1.0)
    layout = codec.layout({"w": (60, 50)})
    delta = layout.pack({"w": torch.randn(60, 50, generator=torch.Generator().manual_seed(0))})
    sums = torch.zeros_like(delta)
    for _ in range(40):
        update = codec.decode(codec.encode(feedback.accumulate("f", delta), layout), layout)
        feedback.settle("f", update)
        sums += aggregate([update], [1], "contributors", layout.num_values, True)
    residual = feedback.state_dict()["f"]
    torch.testing.assert_close(sums + residual, 40 * delta, rtol=0, atol=1e-3)
    assert residual.norm() < 0.5 * (40 * delta).norm()


@pytest.mark.parametrize("bits", [1, 2])
def test_golden_bits_for_independent_normal_values(bits: int) -> None:
    """Nothing to learn: the bound (7.36), what learning in vain costs (0.1), the sign, the magnitude, the levels."""
    codec = codec_for("sparseloco", value_bits=bits)
    layout = codec.layout({"a": (1024, 1024), "b": (1024, 1024)})
    generator = torch.Generator().manual_seed(0)
    flat = layout.pack({name: torch.randn(shape, generator=generator) for name, shape in layout.shapes.items()})
    per_value = 8 * len(codec.encode(flat, layout)) / codec.num_values(layout)
    assert per_value == pytest.approx({1: 8.55, 2: 9.32}[bits], abs=0.06)


def test_statistical_and_fp32_values_fall_back_on_rice_codes() -> None:
    for arguments in ({"quantizer": "statistical"}, {"value_bits": 32}):
        codec = codec_for("sparseloco", **arguments)
        layout = codec.layout({"w": (64, 64)})
        flat = layout.pack({"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))})
        assert len(codec.encode(flat, layout)) == pytest.approx(codec.num_bytes(layout), rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_equality_of_the_bytes_from_a_gpu() -> None:
    codec = codec_for("sparseloco")
    layout = codec.layout({"w": (700, 300), "b": (333,)})
    generator = torch.Generator().manual_seed(0)
    flat = layout.pack({name: torch.randn(shape, generator=generator) for name, shape in layout.shapes.items()})
    payload = codec.encode(flat, layout)
    assert codec.encode(flat.cuda(), layout) == payload
    update = codec.decode(payload, layout, "cuda")
    sums = torch.zeros(layout.num_values, device="cuda")
    update.add_to(sums, 0.5)
    here = torch.zeros(layout.num_values)
    codec.decode(payload, layout).add_to(here, 0.5)
    assert torch.equal(sums.cpu(), here)
