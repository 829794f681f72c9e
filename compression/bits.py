"""Unsigned integers of a fixed number of bits, one after another.

Bit j of value i is bit (i * width + j) of the stream, and bit b of the stream is bit b % 8 of byte b // 8, counted
from the least significant: little-endian throughout. The last byte is filled up with zero bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compression.codec import PayloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLAB_VALUES = 1 << 19
"""Values unpacked at once, a multiple of 8: each bit takes a byte meanwhile."""


def num_bytes(width: int, count: int) -> int:
    """Bytes of `count` values of `width` bits."""
    return (width * count + 7) // 8


def pack(values: NDArray[np.unsignedinteger[Any]], width: int) -> bytes:
    """The stream of `values` (n,), each below 2**width; width 1 to 64."""
    kind = _kind(width)
    values = np.ascontiguousarray(values, dtype=kind)
    if width == 8 * kind.itemsize:
        return values.tobytes()
    slabs = [values[i : i + SLAB_VALUES] for i in range(0, len(values), SLAB_VALUES)]
    return b"".join(np.packbits(_bits(slab)[:, :width], bitorder="little").tobytes() for slab in slabs)


def unpack(stream: memoryview, width: int, count: int, field: str) -> NDArray[np.unsignedinteger[Any]]:
    """The `count` values of a stream of num_bytes(width, count); PayloadError if the bits after them are set."""
    kind = _kind(width)
    if width == 8 * kind.itemsize:
        return np.frombuffer(stream, kind)
    values = np.empty(count, kind)
    for start in range(0, count, SLAB_VALUES):
        part = values[start : start + SLAB_VALUES]
        first, last = num_bytes(width, start), num_bytes(width, start + len(part))
        bits = np.unpackbits(np.frombuffer(stream[first:last], np.uint8), bitorder="little")
        if bits[width * len(part) :].any():
            raise PayloadError(f"{field}: the bits after the last value are not zero")
        wide = np.zeros((len(part), 8 * kind.itemsize), np.uint8)
        wide[:, :width] = bits[: width * len(part)].reshape(-1, width)
        part[:] = np.packbits(wide, bitorder="little").view(kind)
    return values


def _bits(values: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """(n, 8 * itemsize): the bits of each value, least significant first."""
    return np.unpackbits(values.view(np.uint8), bitorder="little").reshape(len(values), -1)


def _kind(width: int) -> np.dtype[np.unsignedinteger[Any]]:
    return np.dtype(next(f"<u{size}" for size in (1, 2, 4, 8) if width <= 8 * size))
