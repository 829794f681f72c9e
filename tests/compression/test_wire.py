"""The frame: every field that is not what it must be is refused by its name."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import PayloadError
from compression.sparse import SparseCodec
from compression.wire import CRC_RESIDUE, Frame, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(60)

FRAME = Frame(9, (Parameter("chunk", 700), Parameter("kind", 3)), ("one", "two"), {"ab": (2, 3), "ac": ()})
PAYLOAD = FRAME.seal([b"xyz", b""])
LIMITS = [(3, 3), (0, 5)]
AT = {"parameters": 9, "lengths": 12, "table": 14}


def test_golden_crc(resealed: Callable[[bytes], bytes]) -> None:
    """The check value of CRC-32C, and the residue that the reader relies on, against the definition bit by bit."""
    assert resealed(b"123456789" + bytes(4)) == b"123456789" + struct.pack("<I", 0xE3069283)
    sealed = resealed(b"anything at all" + bytes(4))
    assert resealed(sealed + bytes(4))[-4:] == struct.pack("<I", CRC_RESIDUE)
    assert resealed(PAYLOAD) == PAYLOAD


def test_streams_come_back() -> None:
    assert [bytes(stream) for stream in FRAME.unseal(PAYLOAD, LIMITS)] == [b"xyz", b""]
    assert FRAME.overhead_bytes([3, 0]) == len(PAYLOAD) - 3


@pytest.mark.parametrize(
    ("at", "forged", "message"),
    [
        (0, "58", r"magic: b'XTPL', expected b'DTPL'"),
        (4, "01", "version: 1, expected 2"),
        (5, "08", "codec: 8, expected 9"),
        (6, "06", "number of parameters: 6, expected 2"),
        (7, "03", "number of streams: 3, expected 2"),
        (8, "03", "number of tensors: 3, expected 2"),
        (AT["parameters"], "bd 05", "chunk: 701, expected 700"),
        (AT["parameters"] + 2, "02", "kind: 2, expected 3"),
        (AT["lengths"], "04", "length of stream one: 4 bytes, expected 3"),
        (AT["lengths"] + 1, "06", "length of stream two: 6 bytes, expected 0 to 5"),
        (AT["lengths"], "ff ff ff ff ff ff ff ff 7f", "length of stream one: 9223372036854775807 bytes"),
        (AT["lengths"], "ff ff ff ff ff ff ff ff ff", "length of stream one: an integer of more than 9 bytes"),
        (AT["lengths"], "83 00", "length of stream one: 3 takes 2 bytes, which is more"),
        (AT["lengths"] + 1, "01", "3 bytes of streams, but their lengths add up to 4"),
        (AT["table"], "22", "tensor 0 data type: 2, expected 1"),
        (AT["table"] + 1, "01", "tensor 0 name: shares 1 bytes with a name of 0"),
        (AT["table"] + 2, "01", "tensor 0 name: shares 1 bytes with a name of 0"),
        (AT["table"] + 3, "ff", "tensor 0 name: 255 bytes at"),
        (AT["table"] + 4, "ff", r"tensor 0 name: b'\\xffb', expected b'ab'"),
        (AT["table"], "13", r"tensor 0 \(ab\) dimensions: 3, expected 2"),
        (AT["table"] + 6, "03", r"tensor 0 \(ab\) shape: \(3, 3\), expected \(2, 3\)"),
        (AT["table"] + 12, "62", "tensor 1 name: b'ab', expected b'ac'"),
        (AT["table"] + 8, "1f", r"tensor 1 \(ac\) dimensions: 15, expected 0"),
    ],
)
def test_each_field_is_checked(at: int, forged: str, message: str, resealed: Callable[[bytes], bytes]) -> None:
    payload = bytearray(PAYLOAD)
    payload[at : at + len(bytes.fromhex(forged))] = bytes.fromhex(forged)
    with pytest.raises(PayloadError, match=message):
        FRAME.unseal(resealed(bytes(payload)), LIMITS)


def test_every_single_bit_is_covered() -> None:
    for bit in range(8 * len(PAYLOAD)):
        flipped = bytearray(PAYLOAD)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            FRAME.unseal(bytes(flipped), LIMITS)


@pytest.mark.parametrize("reseal", [False, True])
def test_every_truncation_and_any_garbage_after_it_is_refused(reseal: bool, resealed: Callable[[bytes], bytes]) -> None:
    for cut in range(len(PAYLOAD)):
        short = PAYLOAD[:cut]
        with pytest.raises(PayloadError):
            FRAME.unseal(resealed(short) if reseal and cut >= 4 else short, LIMITS)
    for garbage in (b"\0", b"abcd", bytes(100)):
        long = PAYLOAD[:-4] + garbage + PAYLOAD[-4:] if reseal else PAYLOAD + garbage
        with pytest.raises(PayloadError):
            FRAME.unseal(resealed(long) if reseal else long, LIMITS)


@settings(max_examples=80, deadline=None, print_blob=True)
@given(st.dictionaries(st.text(max_size=60), st.lists(st.integers(1, 2**32 - 1), max_size=4).map(tuple), max_size=5))
def test_any_table_of_names_comes_through(shapes: dict[str, tuple[int, ...]]) -> None:
    frame = Frame(1, (), ("only",), shapes)
    assert bytes(frame.unseal(frame.seal([b"data"]), [(4, 4)])[0]) == b"data"


def test_a_name_or_a_dimension_too_long_for_the_table_is_refused() -> None:
    for shapes in ({"n" * 256: (1,)}, {"n": (2**32,)}, {"n": (1,) * 15}):
        with pytest.raises(ValueError, match="at most 255 bytes of name"):
            Frame(1, (), (), shapes).seal([])


def test_members_with_different_settings_refuse_each_other_by_name() -> None:
    mine, theirs = SparseCodec(16, 4), SparseCodec(16, 5)
    layout = mine.layout({"w": (4, 4)})
    with pytest.raises(PayloadError, match="k: 5, expected 4"):
        mine.decode(theirs.encode(torch.ones(16), layout), layout)
    with pytest.raises(PayloadError, match="quantizer: 1, expected 2"):
        mine.decode(SparseCodec(16, 4, 1).encode(torch.ones(16), layout), layout)
