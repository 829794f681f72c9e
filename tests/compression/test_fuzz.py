"""A payload that a stranger made or a line broke: the update it was, or PayloadError, and little memory either way."""

from __future__ import annotations

import os
import struct
import tracemalloc
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import Codec, PayloadError
from compression.dense import DenseCodec
from compression.entropy import Entropy
from compression.quantizer import QUANTIZERS
from compression.reference_wire import ReferenceWireCodec
from compression.registry import CoderName, codec_for
from compression.rice import Rice
from compression.sparse import DECODE_BYTES_PER_VALUE, SparseCodec

if TYPE_CHECKING:
    from collections.abc import Callable

    from compression.codec import Layout

pytestmark = pytest.mark.timeout(60)

SHAPES = {"model.w": (5, 9), "model.b": (3,), "s": ()}
CODECS: list[Codec] = [
    *(SparseCodec(chunk, k, width, name) for name, width in QUANTIZERS for chunk, k in ((4, 2), (9, 9), (16, 3))),
    *(SparseCodec(chunk, k, width, coder=Entropy()) for width in (1, 2) for chunk, k in ((4, 2), (9, 9), (64, 3))),
    *(SparseCodec(16, 3, width, name, Rice()) for name, width in QUANTIZERS),
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
    header = payload.index(b"\x10\x00\x00\x01s") + 5  # after the entry of the last tensor, "s"
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
    first_length = 9 + sum(1 + (p.value > 127) for p in codec._frame(layout).parameters)  # type: ignore[attr-defined]
    for claim in (2**31, 2**40, 2**62, 2**63 - 1, 2**64 - 1):
        forged = bytearray(payload)
        written = bytes((claim >> 7 * i & 127) | 128 for i in range(8)) + bytes([claim >> 56 & 255])
        forged[first_length : first_length + 1] = written
        tracemalloc.start()
        with pytest.raises(PayloadError, match="length of stream"):
            codec.decode(resealed(bytes(forged)), layout)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


@pytest.mark.parametrize(("k", "width"), [(64, 2), (64, 1), (512, 2), (4096, 32)])
@pytest.mark.parametrize("coder", ["fixed", "rice", "entropy"])
def test_decoding_stays_within_the_stated_memory(k: int, width: int, coder: CoderName) -> None:
    codec = codec_for("sparseloco", k=k, value_bits=width, coder=coder)
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


LARGER = {"q.weight": (40, 40), "k.weight": (40, 40), "norm": (50,), "up.weight": (70, 40), "s": ()}
MUTATIONS = int(os.environ.get("DIST_TRAIN_FUZZ_MUTATIONS", "10000"))
"""The number of mutated payloads of `test_mutations`, over all codecs."""


def _mutated(payload: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: bits flipped, bytes overwritten, cut, inserted, swapped, forged lengths, the rest of another."""
    broken = bytearray(payload)
    for _ in range(rng.integers(1, 4)):
        at, n = int(rng.integers(0, max(1, len(broken)))), int(rng.integers(1, 33))
        kind = rng.integers(0, 8)
        if kind == 0 and broken:
            broken[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            broken[at : at + n] = rng.bytes(len(broken[at : at + n]))
        elif kind == 2:
            del broken[at : at + n]
        elif kind == 3:
            broken[at:at] = rng.bytes(n)
        elif kind == 4:
            to = int(rng.integers(0, max(1, len(broken))))
            broken[at : at + n], broken[to : to + n] = broken[to : to + n], broken[at : at + n]
        elif kind == 5 and len(broken) > 40:
            at = int(rng.integers(14, 21))  # where the lengths of streams are
            broken[at : at + 1] = bytes([*(rng.integers(128, 256, int(rng.integers(0, 8)))), rng.integers(0, 128)])
        elif kind == 6:
            broken = broken[: max(0, len(broken) - n)]
        else:
            broken[at:] = other[at:]
    return bytes(broken)


@pytest.mark.timeout(900)
def test_mutations() -> None:
    codecs: list[Codec] = [
        *(codec_for("sparseloco", chunk=64, k=5, value_bits=w, coder=c) for w in (1, 2) for c in ("entropy", "rice")),
        codec_for("sparseloco", chunk=64, k=5, quantizer="statistical"),
        SparseCodec(64, 5),
        *(DenseCodec(values) for values in ("fp32", "bf16", "int8")),
    ]
    rng = np.random.default_rng(20)
    payloads = [[_random_payload(codec, rng) for _ in range(8)] for codec in codecs]
    decoded = 0
    for number in range(MUTATIONS):
        which = number % len(codecs)
        codec, layout = codecs[which], codecs[which].layout(LARGER)
        one, other = (payloads[which][i] for i in rng.integers(0, 8, 2))
        mutated = _mutated(one, other, rng)
        resealed = bool(rng.integers(0, 4)) and len(mutated) > 4
        if resealed:
            mutated = mutated[:-4] + struct.pack("<I", google_crc32c.value(mutated[:-4]))
        try:
            update = codec.decode(mutated, layout)
        except PayloadError:
            continue
        decoded += 1
        assert resealed or mutated in payloads[which], number
        assert torch.isfinite(update.values).all(), number
        sums = torch.zeros(layout.num_values)
        update.add_to(sums)
        if update.positions is not None:
            assert len(update.values) == codec.num_values(layout), number
            assert (update.positions.diff() > 0).all(), number
    assert decoded > MUTATIONS // 100  # some forgeries are sound: other values, not no values


def _random_payload(codec: Codec, rng: np.random.Generator) -> bytes:
    layout = codec.layout(LARGER)
    tensors = {name: torch.from_numpy(np.asarray(rng.standard_normal(s), np.float32)) for name, s in LARGER.items()}
    return codec.encode(layout.pack(tensors), layout)
