"""The frame around every payload: who wrote it, for which tensors, and that it arrived as it was sent.

`docs/wire-format.md` is the specification, byte by byte. Integers are varints: 7 bits a byte, the lowest ones first.

    magic "DTPL", version, codec, number of parameters, of streams, of tensors
    the codec's parameters        so that two members with different settings refuse each other by name
    the length of each stream
    the tensor table              data type of the result, name, shape
    the streams
    CRC-32C of all bytes before it

A receiver knows what it waits for, so it parses nothing on trust: each field is compared with what it must be, and no
memory is taken for anything that the payload claims.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import google_crc32c

from compression.codec import PayloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.codec import Shapes

MAGIC = b"DTPL"
VERSION = 2
FP32 = 1
"""Data type of the result; the only one there is so far."""
SAME_SHAPE = 15
"""Stands for the number of dimensions where the shape is that of the tensor before."""
MOST_DIMENSIONS = 14
MOST_VARINT_BYTES = 9
CRC_RESIDUE = 0x48674BC7
"""The CRC-32C of any bytes followed by their own CRC-32C (little-endian): checks a payload without copying it."""
_HEAD = struct.Struct("<4sBBBB")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Parameter:
    """One setting of a codec, as it stands in the header."""

    name: str
    value: int
    """Not negative."""


@dataclass(frozen=True)
class Frame:
    """What both sides know before a payload is written or read."""

    codec_id: int
    parameters: tuple[Parameter, ...]
    streams: tuple[str, ...]
    """The names of the streams, for messages."""
    shapes: Shapes

    def overhead_bytes(self, lengths: Sequence[int]) -> int:
        """Bytes of a payload with streams of these lengths that belong to no stream."""
        return len(self._header(lengths)) + _CRC.size

    def seal(self, streams: Sequence[bytes]) -> bytes:
        """The payload that carries `streams`."""
        parts = [self._header([len(stream) for stream in streams]), *streams]
        crc = 0
        for part in parts:
            crc = google_crc32c.extend(crc, part)
        return b"".join([*parts, _CRC.pack(crc)])

    def unseal(self, payload: bytes, limits: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The streams of `payload`, without copying, each as long as its limits (least, most) allow.

        PayloadError if anything in the frame is not what this frame has.
        """
        if len(payload) < _HEAD.size + _CRC.size:
            raise PayloadError(f"payload: {len(payload)} bytes are less than a header")
        reader = _Reader(memoryview(payload)[: -_CRC.size])
        magic, version, codec, num_parameters, num_streams = _HEAD.unpack(reader.take(_HEAD.size, "header"))
        _expect("magic", magic, MAGIC)
        _expect("version", version, VERSION)
        if google_crc32c.value(bytes(payload)) != CRC_RESIDUE:
            raise PayloadError("crc: the bytes are not those that were sent (CRC-32C differs)")
        _expect("codec", codec, self.codec_id)
        _expect("number of parameters", num_parameters, len(self.parameters))
        _expect("number of streams", num_streams, len(self.streams))
        _expect("number of tensors", reader.varint("number of tensors"), len(self.shapes))
        for parameter in self.parameters:
            _expect(parameter.name, reader.varint(parameter.name), parameter.value)
        lengths = [reader.varint(f"length of stream {name}") for name in self.streams]
        for name, length, (least, most) in zip(self.streams, lengths, limits, strict=True):
            if not least <= length <= most:
                allowed = f"{least}" if least == most else f"{least} to {most}"
                raise PayloadError(f"length of stream {name}: {length} bytes, expected {allowed}")
        self._check_table(reader)
        if sum(lengths) != reader.left:
            raise PayloadError(f"payload: {reader.left} bytes of streams, but their lengths add up to {sum(lengths)}")
        return [reader.take(length, name) for name, length in zip(self.streams, lengths, strict=True)]

    def _header(self, lengths: Sequence[int]) -> bytes:
        head = _HEAD.pack(MAGIC, VERSION, self.codec_id, len(self.parameters), len(self.streams))
        numbers = [len(self.shapes), *(parameter.value for parameter in self.parameters), *lengths]
        return b"".join([head, *map(_varint, numbers), *_table(self.shapes)])

    def _check_table(self, reader: _Reader) -> None:
        last_name, last_shape = b"", None
        for number, (name, shape) in enumerate(self.shapes.items()):
            field = f"tensor {number}"
            kind, head, tail, rest_bytes = reader.take(4, field)
            _expect(f"{field} data type", kind >> 4, FP32)
            rest = bytes(reader.take(rest_bytes, f"{field} name"))
            if head + tail > len(last_name):
                raise PayloadError(f"{field} name: shares {head + tail} bytes with a name of {len(last_name)}")
            last_name = last_name[:head] + rest + last_name[len(last_name) - tail :]
            _expect(f"{field} name", last_name, name.encode())
            same = shape == last_shape
            _expect(f"{field} ({name}) dimensions", kind & 15, SAME_SHAPE if same else len(shape))
            if not same:
                _expect(f"{field} ({name}) shape", tuple(reader.varint(field) for _ in shape), shape)
            last_shape = shape


def _table(shapes: Shapes) -> Iterable[bytes]:
    """The tensor table: a name is what it shares with both ends of the one before, and its own rest between them."""
    last_name, last_shape = b"", None
    for name, shape in shapes.items():
        encoded = name.encode()
        if len(encoded) > 255 or len(shape) > MOST_DIMENSIONS or max(shape, default=1) >= 2**32:
            raise ValueError(
                f"Tensor {name!r} {shape}: at most 255 bytes of name, {MOST_DIMENSIONS} dimensions, each below 2**32"
            )
        head = _shared(last_name, encoded)
        tail = _shared(last_name[head:][::-1], encoded[head:][::-1])
        rest = encoded[head : len(encoded) - tail]
        dimensions = () if shape == last_shape else shape
        kind = FP32 << 4 | (SAME_SHAPE if shape == last_shape else len(shape))
        yield b"".join([bytes((kind, head, tail, len(rest))), rest, *map(_varint, dimensions)])
        last_name, last_shape = encoded, shape


def _shared(a: bytes, b: bytes) -> int:
    """How many bytes at their beginning are the same."""
    same = (x == y for x, y in zip(a, b, strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest ones first; the upper bit says that more follow."""
    groups = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def _expect(field: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise PayloadError(f"{field}: {got!r}, expected {wanted!r}")


class _Reader:
    """Bytes from front to back, never past the end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int, field: str) -> memoryview:
        if count > self.left:
            raise PayloadError(f"{field}: {count} bytes at {self._at}, but only {self.left} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self, field: str) -> int:
        """An integer below 2^63 in as few bytes as it needs; PayloadError if it has more."""
        number = 0
        for index in range(MOST_VARINT_BYTES):
            byte = self.take(1, field)[0]
            number |= (byte & 127) << 7 * index
            if byte < 128:
                if byte == 0 and index:
                    raise PayloadError(f"{field}: {number} takes {index + 1} bytes, which is more than it needs")
                return number
        raise PayloadError(f"{field}: an integer of more than {MOST_VARINT_BYTES} bytes")
