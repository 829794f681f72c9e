"""A payload that a stranger made or a line broke: the update it was, or PayloadError, and little memory either way."""

from __future__ import annotations

import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import Codec, PayloadError
from compression.dense import DenseCodec
from compression.quantizer import QUANTIZERS
from compression.reference_wire import ReferenceWireCodec
from compression.sparse import DECODE_BYTES_PER_VALUE, SparseCodec

if TYPE_CHECKING:
    from collections.abc import Callable

    from compression.codec import Layout

pytestmark = pytest.mark.timeout(60)

SHAPES = {"model.w": (5, 9), "model.b": (3,), "s": ()}
CODECS: list[Codec] = [
    *(SparseCodec(chunk, k, width, name) for name, width in QUANTIZERS for chunk, k in ((4, 2), (9, 9), (16, 3))),
    ReferenceWireCodec(4, 2),
    *(DenseCodec(values) for values in ("fp32", "bf16", "int8")),
]


def _sent(codec: Codec) -> tuple[bytes, Layout]:
    layout = codec.layout(SHAPES)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return codec.encode(layout.pack(tensors), layout), layout


def _decode_or_refuse(codec: Codec, payload: bytes, layout: Layout) -> bool:
    """True if it decoded, and then to an update that could have been sent."""
    try:
        update = codec.decode(payload, layout)
    except PayloadError:
        return False
    assert update.values.dtype == torch.float32
    assert torch.isfinite(update.values).all()
    if update.positions is None:
        assert len(update.values) == layout.num_values
    else:
        assert (update.positions.diff() > 0).all()
        assert update.positions.min() >= 0
        real = layout.pack({name: torch.ones(shape) for name, shape in SHAPES.items()})
        assert (real[update.positions] == 1).all()
    return True


@settings(max_examples=400, deadline=None, print_blob=True)
@given(data=st.data(), codec=st.sampled_from(CODECS), reseal=st.booleans())
def test_broken_and_forged_payloads(
    data: st.DataObject, codec: Codec, reseal: bool, resealed: Callable[[bytes], bytes]
) -> None:
    payload, layout = _sent(codec)
    forged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(forged) - 1)))
        kind = data.draw(st.sampled_from(["flip", "overwrite", "cut", "insert", "append", "repeat"]))
        if kind == "flip" and forged:
            forged[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "overwrite":
            patch = data.draw(st.binary(min_size=1, max_size=9))
            forged[at : at + len(patch)] = patch
        elif kind == "cut":
            del forged[at : at + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            forged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "append":
            forged += data.draw(st.binary(min_size=1, max_size=9))
        else:
            forged += payload
    mutated = bytes(forged)
    if reseal and len(mutated) >= 4:
        mutated = resealed(mutated)
    decoded = _decode_or_refuse(codec, mutated, layout)
    assert reseal or not decoded or mutated == payload


@settings(max_examples=150, deadline=None, print_blob=True)
@given(data=st.data(), codec=st.sampled_from(CODECS))
def test_streams_of_noise_under_a_good_frame(
    data: st.DataObject, codec: Codec, resealed: Callable[[bytes], bytes]
) -> None:
    payload, layout = _sent(codec)
    header = payload.index(b"\x01s\x00") + 3  # after the entry of the last tensor, "s"
    noise = data.draw(st.binary(min_size=len(payload) - 4 - header, max_size=len(payload) - 4 - header))
    _decode_or_refuse(codec, resealed(payload[:header] + noise + bytes(4)), layout)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.binary(max_size=200), st.sampled_from(CODECS))
def test_noise(noise: bytes, codec: Codec) -> None:
    assert not _decode_or_refuse(codec, noise, codec.layout(SHAPES))
    assert not _decode_or_refuse(codec, b"DTPL\x01" + noise, codec.layout(SHAPES))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_claim_costs_no_memory(codec: Codec, resealed: Callable[[bytes], bytes]) -> None:
    payload, layout = _sent(codec)
    codec.decode(payload, layout)
    first_length = 10 + payload[6]
    for claim in (2**31, 2**40, 2**63, 2**64 - 1):
        forged = bytearray(payload)
        forged[first_length : first_length + 8] = struct.pack("<Q", claim)
        tracemalloc.start()
        with pytest.raises(PayloadError, match="length of stream"):
            codec.decode(resealed(bytes(forged)), layout)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


@pytest.mark.parametrize(("k", "width"), [(64, 2), (64, 1), (512, 2), (4096, 32)])
def test_decoding_stays_within_the_stated_memory(k: int, width: int) -> None:
    codec = SparseCodec(4096, k, width)
    layout = codec.layout({"w": (1024, 512), "b": (5000,)})
    generator = torch.Generator().manual_seed(0)
    flat = layout.pack({name: torch.randn(shape, generator=generator) for name, shape in layout.shapes.items()})
    payload = codec.encode(flat, layout)
    tracemalloc.start()
    update = codec.decode(payload, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= DECODE_BYTES_PER_VALUE * len(update.values) + 100_000


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([2, 1], "places: number 1 is not above"),
        ([1, 1], "places: number 1 is not above"),
        ([0, 9], "places: 9 is not below the chunk"),
        ([0, 15], "places: 15 is not below the chunk"),
    ],
)
def test_places_out_of_order_or_range_are_refused(
    places: list[int], message: str, resealed: Callable[[bytes], bytes]
) -> None:
    codec = SparseCodec(9, 2, 1)
    layout = codec.layout({"w": (3, 3)})
    payload = bytearray(codec.encode(torch.arange(9.0), layout))
    payload[-8] = places[0] | places[1] << 4
    with pytest.raises(PayloadError, match=message):
        codec.decode(resealed(bytes(payload)), layout)


def test_a_place_in_the_padding_is_refused(resealed: Callable[[bytes], bytes]) -> None:
    codec = SparseCodec(4, 1, 1)
    layout = codec.layout({"w": (1, 3)})
    payload = bytearray(codec.encode(torch.tensor([1.0, 0, 0, 0, 2, 0, 0, 0]), layout))
    assert payload[-9] == 0
    payload[-9] = 1 << 2  # second chunk: place 1 is a column that the tensor does not have
    with pytest.raises(PayloadError, match="places: 1 of chunk 1 is padding"):
        codec.decode(resealed(bytes(payload)), layout)
