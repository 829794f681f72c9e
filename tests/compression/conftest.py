"""What the tests of this folder share: a CRC-32C of their own, and payloads taken apart and put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


def _crc32c(data: bytes) -> int:
    """Bit by bit, from the definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.fixture(scope="session")
def resealed() -> Callable[[bytes], bytes]:
    """The payload with its last four bytes made the CRC of the others: what a forger would send."""
    return lambda payload: payload[:-4] + _crc32c(payload[:-4]).to_bytes(4, "little")
