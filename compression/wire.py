"""The frame around every payload: who wrote it, for which tensors, and that it arrived as it was sent.

`docs/wire-format.md` is the specification, byte by byte. All integers are little-endian.

    magic "DTPL", version, codec, number of parameters' bytes, of streams, of tensors
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
from typing import TYPE_CHECKING

import google_crc32c

from compression.codec import PayloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.codec import Shapes

MAGIC = b"DTPL"
VERSION = 1
FP32 = 1
"""Data type of the result; the only one there is so far."""
CRC_RESIDUE = 0x48674BC7
"""The CRC-32C of any bytes followed by their own CRC-32C (little-endian): checks a payload without copying it."""
_HEAD = struct.Struct("<4sBBBBH")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Parameter:
    """One setting of a codec, as it stands in the header."""

    name: str
    form: str
    """`B`, `H` or `I`: an unsigned integer of 1, 2 or 4 bytes."""
    value: int


@dataclass(frozen=True)
class Frame:
    """What both sides know before a payload is written or read."""

    codec_id: int
    parameters: tuple[Parameter, ...]
    streams: tuple[str, ...]
    """The names of the streams, for messages."""
    shapes: Shapes

    @property
    def overhead_bytes(self) -> int:
        """Bytes of a payload that belong to no stream."""
        return len(self._header([0] * len(self.streams))) + _CRC.size

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
        magic, version, codec, num_parameter_bytes, num_streams, num_tensors = _HEAD.unpack(
            reader.take(_HEAD.size, "header")
        )
        _expect("magic", magic, MAGIC)
        _expect("version", version, VERSION)
        if google_crc32c.value(bytes(payload)) != CRC_RESIDUE:
            raise PayloadError("crc: the bytes are not those that were sent (CRC-32C differs)")
        _expect("codec", codec, self.codec_id)
        _expect("parameter bytes", num_parameter_bytes, len(_pack(self.parameters)))
        _expect("number of streams", num_streams, len(self.streams))
        _expect("number of tensors", num_tensors, len(self.shapes))
        for parameter in self.parameters:
            _expect(parameter.name, reader.number(parameter.form, parameter.name), parameter.value)
        lengths = [reader.number("Q", f"length of stream {name}") for name in self.streams]
        for name, length, (least, most) in zip(self.streams, lengths, limits, strict=True):
            if not least <= length <= most:
                allowed = f"{least}" if least == most else f"{least} to {most}"
                raise PayloadError(f"length of stream {name}: {length} bytes, expected {allowed}")
        self._check_table(reader)
        if sum(lengths) != reader.left:
            raise PayloadError(f"payload: {reader.left} bytes of streams, but their lengths add up to {sum(lengths)}")
        return [reader.take(length, name) for name, length in zip(self.streams, lengths, strict=True)]

    def _header(self, lengths: Sequence[int]) -> bytes:
        parameters = _pack(self.parameters)
        head = _HEAD.pack(MAGIC, VERSION, self.codec_id, len(parameters), len(lengths), len(self.shapes))
        return b"".join([head, parameters, struct.pack(f"<{len(lengths)}Q", *lengths), *_table(self.shapes)])

    def _check_table(self, reader: _Reader) -> None:
        previous = b""
        for number, (name, shape) in enumerate(self.shapes.items()):
            field = f"tensor {number}"
            _expect(f"{field} data type", reader.number("B", field), FP32)
            shared = reader.number("B", field)
            suffix = bytes(reader.take(reader.number("B", field), f"{field} name"))
            if shared > len(previous):
                raise PayloadError(f"{field} name: shares {shared} bytes with a name of {len(previous)}")
            previous = previous[:shared] + suffix
            _expect(f"{field} name", previous, name.encode())
            _expect(f"{field} ({name}) dimensions", reader.number("B", field), len(shape))
            _expect(f"{field} ({name}) shape", tuple(reader.number("I", field) for _ in shape), shape)


def _table(shapes: Shapes) -> Iterable[bytes]:
    """The tensor table: a name is written as what it shares with the one before, and its own rest."""
    previous = b""
    for name, shape in shapes.items():
        encoded = name.encode()
        if len(encoded) > 255 or len(shape) > 255 or max(shape, default=1) >= 2**32:
            raise ValueError(f"Tensor {name!r} {shape}: at most 255 bytes of name, 255 dimensions, each below 2**32")
        shared = next((i for i, (a, b) in enumerate(zip(previous, encoded, strict=False)) if a != b), None)
        shared = min(len(previous), len(encoded)) if shared is None else shared
        yield struct.pack("<BBB", FP32, shared, len(encoded) - shared) + encoded[shared:]
        yield struct.pack(f"<B{len(shape)}I", len(shape), *shape)
        previous = encoded


def _pack(parameters: Sequence[Parameter]) -> bytes:
    return b"".join(struct.pack("<" + parameter.form, parameter.value) for parameter in parameters)


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

    def number(self, form: str, field: str) -> int:
        kind = struct.Struct("<" + form)
        return int(kind.unpack(self.take(kind.size, field))[0])
