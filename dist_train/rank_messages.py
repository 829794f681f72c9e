"""What the ranks of one replica tell each other besides the run's own messages, packed. Knows no torch.

a number        8 bytes, unsigned, big-endian
a digest slot   a fragment's place in the model (4 bytes, big-endian), and the SHA-256 of its parameters
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comms.wire import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER_BYTES = 8
_PLACE_BYTES = 4
SLOT_BYTES = _PLACE_BYTES + DIGEST_BYTES


def number_to_bytes(number: int) -> bytes:
    """A number that is not negative."""
    return number.to_bytes(NUMBER_BYTES, "big")


def number_from_bytes(packed: bytes) -> int:
    """The same number."""
    return int.from_bytes(packed, "big")


def slot(place: int, digest: bytes) -> bytes:
    """The slot of the fragment at `place`."""
    return place.to_bytes(_PLACE_BYTES, "big") + digest


def slots_of(packed: bytes) -> Iterator[tuple[int, bytes]]:
    """Place and digest of each slot."""
    for start in range(0, len(packed), SLOT_BYTES):
        one = packed[start : start + SLOT_BYTES]
        yield int.from_bytes(one[:_PLACE_BYTES], "big"), one[_PLACE_BYTES:]
