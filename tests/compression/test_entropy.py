"""The entropy coder: lossless for any symbols, the bytes of the specification, within its limits."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import PayloadError
from compression.entropy import Entropy
from compression.lanes import lanes_of
from compression.layout import ChunkLayout
from compression.quantizer import QUANTIZERS
from compression.quota import Quota
from compression.registry import codec_for
from compression.sparse import SparseCodec
from compression.streams import Symbols
from tests.compression.reference_decoder import Lane, decode_slab

pytestmark = pytest.mark.timeout(100)  # the first use compiles

QUANTIZER = {bits: QUANTIZERS["sign-magnitude", bits] for bits in (1, 2)}
CODER = Entropy()
SHAPES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=3
)


def random_symbols(quota: Quota, bits: int, seed: int, *, wild: bool = False) -> Symbols:
    """Any places; levels near each other, or `wild`."""
    rng = np.random.default_rng(seed)
    layout, places = quota.layout, list[int]()
    for chunk, count in enumerate(quota.counts.tolist()):
        real = np.flatnonzero(layout.is_real(np.array([chunk]), np.arange(layout.chunk)))
        places += sorted(rng.choice(real, count, replace=False).tolist())
    low = rng.integers(0, 4096, layout.num_chunks) if wild else 0x700 + rng.integers(-3, 4, layout.num_chunks)
    high = np.minimum(low + rng.integers(0, 4096 if wild else 5, layout.num_chunks), 4095)
    levels = np.stack([low, high], axis=1).reshape(-1) if bits == 2 else low
    return Symbols(
        np.array(places, np.uint16), levels.astype(np.uint16), rng.integers(0, 2**bits, quota.total, np.uint8)
    )


def assert_equal(a: Symbols, b: Symbols) -> None:
    for name in ("places", "levels", "codes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    SHAPES,
    st.sampled_from([4, 16, 64, 256]),
    st.integers(1, 64),
    st.sampled_from([1, 2]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_any_symbols_come_back(  # noqa: PLR0917
    shapes: dict[str, tuple[int, ...]], chunk: int, k: int, bits: int, seed: int, wild: bool
) -> None:
    quota = Quota(ChunkLayout(shapes, chunk), min(k, chunk))
    symbols = random_symbols(quota, bits, seed, wild=wild)
    streams = CODER.encode(symbols, quota, QUANTIZER[bits])
    for stream, (least, most) in zip(streams, CODER.limits(quota, QUANTIZER[bits]), strict=True):
        assert least <= len(stream) <= most
    assert_equal(CODER.decode([memoryview(s) for s in streams], quota, QUANTIZER[bits]), symbols)


@settings(max_examples=25, deadline=None, print_blob=True)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([16, 64]),
    st.integers(1, 12),
    st.sampled_from([1, 2]),
    st.integers(0, 2**32),
    st.booleans(),
    st.booleans(),
)
def test_oracle_a_decoder_written_from_the_specification_alone(  # noqa: PLR0917
    shape: tuple[int, int], chunk: int, k: int, bits: int, seed: int, wild: bool, vector: bool
) -> None:
    shapes = {"w": (shape[0] * shape[1],) if vector else shape}
    quota = Quota(ChunkLayout(shapes, chunk), k)
    symbols = random_symbols(quota, bits, seed, wild=wild)
    (stream,) = CODER.encode(symbols, quota, QUANTIZER[bits])
    lane = Lane([word for (word,) in struct.iter_unpack("<H", stream)])
    span = quota.layout.spans[0]
    chunks = decode_slab(lane, (span.rows, span.cols), (span.height, span.width), k, bits)
    assert [level for levels, _, _ in chunks for level in levels] == symbols.levels.tolist()
    assert [place for _, places, _ in chunks for place in places] == symbols.places.tolist()
    assert [code for _, _, codes in chunks for code in codes] == symbols.codes.tolist()
    assert lane.taken - 2 == len(lane.words)


def test_golden_a_lane_worked_out_by_hand() -> None:
    """A vector of one value, code 1, level 0x700: an interval that is everything and two bits of even chance.

    range 2^48. Is low unlike 0x700? No: the bit 0 takes the upper half, low = 2^47, range = 2^47. The place is the only
    one, 0 bits. Is it negative? Yes: 1 takes the lower half, range = 2^46. End: the upper 16 of 48 bits of
    2^47 + 2^32 - 1, which are 0x8000.
    """
    quota = Quota(ChunkLayout({"s": (1,)}, 4), 1)
    symbols = Symbols(np.zeros(1, np.uint16), np.array([0x700], np.uint16), np.ones(1, np.uint8))
    assert CODER.encode(symbols, quota, QUANTIZER[1]) == [b"\x00\x80"]


def test_golden_bytes_of_a_matrix() -> None:
    """The example of the specification; what the reference decoder makes of it is checked above."""
    codec = SparseCodec(4, 2, 2, coder=Entropy())
    layout = codec.layout({"w": (2, 2)})
    payload = codec.encode(layout.pack({"w": torch.tensor([[0.0, -1.0], [0.5, 0.0]])}), layout)
    lanes = payload[9 + 5 + 1 + 7 : -4]
    lane = Lane([word for (word,) in struct.iter_unpack("<H", lanes)])
    assert decode_slab(lane, (2, 2), (2, 2), 2, 2) == [([0x7E0, 0x7F0], [1, 2], [3, 0])]
    assert lanes.hex(" ") == "00 40 57 00 00 80 b2 5d"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int) -> None:
    quota = Quota(ChunkLayout({"a": (160, 80), "b": (200, 90), "c": (999,)}, 64), 5)
    symbols = random_symbols(quota, 2, 0)
    assert len(lanes_of(quota)) == 3
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        streams = CODER.encode(symbols, quota, QUANTIZER[2])
        assert_equal(CODER.decode([memoryview(s) for s in streams], quota, QUANTIZER[2]), symbols)
    finally:
        torch.set_num_threads(before)
    assert streams == CODER.encode(symbols, quota, QUANTIZER[2])


def test_a_lane_longer_or_shorter_than_its_symbols_is_refused() -> None:
    quota = Quota(ChunkLayout({"a": (160, 80), "b": (200, 90)}, 64), 5)
    (stream,) = CODER.encode(random_symbols(quota, 2, 0), quota, QUANTIZER[2])
    (length,) = struct.unpack_from("<I", stream)
    for changed, message in [
        (stream + b"\0\0", "lane 1 has"),
        (stream[:-2], "lane 1 has"),
        (stream[:-1], "lanes: lengths"),
        (struct.pack("<I", length + 2) + stream[4:], "lane"),
        (struct.pack("<I", 2**32 - 1) + stream[4:], "lanes: lengths"),
    ]:
        with pytest.raises(PayloadError, match=message):
            CODER.decode([memoryview(changed)], quota, QUANTIZER[2])


def test_uneven_rows_and_columns_and_low_rank_signs_cost_less() -> None:
    """Half of the rows and columns hold nine tenths of the places, and signs are of rank one: far below the bound."""
    rng = np.random.default_rng(0)
    shape = (1024, 1024)
    scale = np.where(rng.random(1024) < 0.5, 3.0, 1.0)
    signs = np.sign(rng.standard_normal(1024))[:, None] * np.sign(rng.standard_normal(1024))
    values = np.abs(rng.standard_normal(shape)) * scale[:, None] * scale[::-1] * signs
    plain = rng.standard_normal(shape)
    codec = codec_for("sparseloco", value_bits=1)
    bits = []
    for matrix in (values, plain):
        layout = codec.layout({"w": shape})
        payload = codec.encode(layout.pack({"w": torch.from_numpy(matrix.astype(np.float32))}), layout)
        bits.append(8 * len(payload) / codec.num_values(layout))
    assert bits[0] < 6.0
    assert 8.3 < bits[1] < 8.65


def test_a_quantizer_without_a_model_is_refused() -> None:
    quota = Quota(ChunkLayout({"a": (4, 4)}, 16), 2)
    for quantizer in (QUANTIZERS["sign-magnitude", 32], QUANTIZERS["statistical", 2]):
        with pytest.raises(ValueError, match="has no entropy coder; use"):
            CODER.limits(quota, quantizer)
