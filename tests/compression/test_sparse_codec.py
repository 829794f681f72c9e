"""The sparse codec as a whole: golden bytes, what it keeps, and what it sends of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import PayloadError
from compression.dense import DenseCodec
from compression.layout import ChunkLayout
from compression.quantizer import QUANTIZERS
from compression.sparse import SparseCodec

pytestmark = pytest.mark.timeout(60)

EXAMPLE = bytes.fromhex(
    "44 54 50 4c  02 10 05 03 01"  # DTPL, version 2, sparseloco, 5 parameters, 3 streams, 1 tensor
    "04 00 02  02 00"  # C = 4, padded, k = 2, sign-magnitude, fixed width
    "01 03 01"  # lengths
    "12 00 00 01 77  02 02"  # fp32 of two dimensions, "w" (2, 2)
    "09"  # places 1 and 2
    "e0 07 7f"  # low 0.5 = 7e0, high 1 = 7f0
    "03"  # -high, +low
    "cf 73 07 cf"
)
CODECS = st.builds(
    lambda chunk, k, kind: SparseCodec(chunk, min(k, chunk), kind[1], kind[0]),
    st.sampled_from([4, 16, 64]),
    st.integers(1, 64),
    st.sampled_from(list(QUANTIZERS)),
)
SHAPES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(1, 11), max_size=3).map(tuple), min_size=1, max_size=3
)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_golden_bytes_of_a_hand_made_payload() -> None:
    codec = SparseCodec(4, 2, 2)
    layout = codec.layout({"w": (2, 2)})
    assert codec.encode(layout.pack({"w": torch.tensor([[0.0, -1.0], [0.5, 0.0]])}), layout) == EXAMPLE
    update = codec.decode(EXAMPLE, layout)
    assert update.positions is not None
    assert update.positions.tolist() == [1, 2]
    assert update.values.tolist() == [-1.0, 0.5]


def test_the_example_in_the_docs_is_the_golden_payload() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "wire-format.md").read_text(encoding="utf-8")
    lines = page.split("```")[1].splitlines()
    columns = [re.match(r"([0-9a-f]{2} )*[0-9a-f]{2}(?=   )", line) for line in lines]
    assert bytes.fromhex("".join(column[0] for column in columns if column)) == EXAMPLE


@settings(max_examples=150, deadline=None, print_blob=True)
@given(CODECS, SHAPES, st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_round_trip_for_any_shape_and_setting(
    codec: SparseCodec, shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype
) -> None:
    layout = codec.layout(shapes)
    flat = layout.pack({name: tensor.to(dtype) for name, tensor in drawn(shapes, seed).items()})
    before = flat.clone()
    payload = codec.encode(flat, layout)
    assert torch.equal(flat, before)
    assert len(payload) == codec.num_bytes(layout)
    update = codec.decode(payload, layout)
    assert update.positions is not None
    assert (update.positions.diff() > 0).all()
    assert (
        np.bincount(update.positions // codec.chunk, minlength=layout.num_chunks).tolist()
        == np.minimum(layout.num_real, codec.k).tolist()
    )
    wanted = flat[update.positions]
    if codec.quantizer.code_bits == 32:
        assert torch.equal(update.values, wanted)
    elif codec.quantizer is not QUANTIZERS["statistical", 2]:
        assert torch.equal(update.values.signbit(), wanted < 0)
    # a codec of the same settings elsewhere gives the same bytes
    again = SparseCodec(codec.chunk, codec.k, *_choice(codec))
    assert again.encode(flat, again.layout(shapes)) == payload


def _choice(codec: SparseCodec) -> tuple[int, str]:
    return next((width, name) for (name, width), quantizer in QUANTIZERS.items() if quantizer is codec.quantizer)


@settings(max_examples=80, deadline=None, print_blob=True)
@given(CODECS, SHAPES, st.integers(0, 2**32))
def test_conservation_sent_plus_kept_is_wanted(
    codec: SparseCodec, shapes: dict[str, tuple[int, ...]], seed: int
) -> None:
    """Exact: whole numbers and levels of four mantissa bits leave nothing to round."""
    layout = codec.layout(shapes)
    flat = layout.pack({name: (tensor * 100).round() for name, tensor in drawn(shapes, seed).items()})
    update = codec.decode(codec.encode(flat, layout), layout)
    sent = torch.zeros_like(flat)
    update.add_to(sent)
    kept = flat - sent
    close = torch.zeros_like(flat) if codec.quantizer.level_bits != 32 else flat.abs() * 2**-22 + 1e-4
    assert ((sent + kept - flat).abs() <= close).all()
    untouched = torch.ones(len(flat), dtype=torch.bool)
    untouched[update.positions] = False
    assert torch.equal(kept[untouched], flat[untouched])
    for name, tensor in layout.unpack(kept).items():
        assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equality_k_of_the_whole_chunk_in_fp32_is_dense(dtype: torch.dtype) -> None:
    shapes = {"w": (65, 130), "b": (7,), "s": (), "t": (3, 5, 2)}
    tensors = {name: tensor.to(dtype) for name, tensor in drawn(shapes, 0).items()}
    sparse, dense = SparseCodec(4096, 4096, 32), DenseCodec("fp32")
    layout, flat_layout = sparse.layout(shapes), dense.layout(shapes)
    update = sparse.decode(sparse.encode(layout.pack(tensors), layout), layout)
    flat = torch.zeros(layout.num_values)
    update.add_to(flat)
    whole = dense.decode(dense.encode(flat_layout.pack(tensors), flat_layout), flat_layout)
    for name, tensor in flat_layout.unpack(whole.values).items():
        assert torch.equal(layout.unpack(flat)[name], tensor)


def test_golden_bits_for_each_value_at_the_default_setting() -> None:
    """12 + 2 bits a value and two levels of 12 bits a chunk, beside a frame of less than 200 bytes."""
    codec = SparseCodec()
    layout = codec.layout(
        {"model.layers.0.self_attn.q_proj.weight": (1024, 1024), "model.layers.0.norm.weight": (1024,)}
    )
    num_chunks = 256 + 1
    streams = num_chunks * 64 * 14 // 8 + num_chunks * 3
    assert streams < codec.num_bytes(layout) < streams + 200


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(
        ValueError, match="'statistical' with value_bits = 1 does not exist; there are: sign-magnitude with 1"
    ):
        SparseCodec(value_bits=1, quantizer="statistical")
    for k in (0, 4097):
        with pytest.raises(ValueError, match=f"k = {k} is not between"):
            SparseCodec(k=k)


def test_another_codecs_layout_is_refused() -> None:
    codec = SparseCodec(16, 4)
    for layout in (ChunkLayout({"w": (4, 4)}, 4), DenseCodec().layout({"w": (4, 4)})):
        with pytest.raises(TypeError, match="sparseloco with chunk = 16 needs the layout"):
            codec.encode(torch.zeros(16), layout)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_never_becomes_a_payload(bad: float) -> None:
    codec = SparseCodec(4, 1)
    layout = codec.layout({"w": (2, 2)})
    with pytest.raises(ValueError, match="'w' holds") as caught:
        codec.encode(torch.tensor([1.0, bad, 0, 0]), layout)
    assert not isinstance(caught.value, PayloadError)
