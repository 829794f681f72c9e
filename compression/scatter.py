"""Sparse updates into dense buffers in main memory: one rounded product and one rounded sum a value, never fused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compression.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def add_at(flat: Tensor, positions: Tensor, values: Tensor, weight: float) -> None:
    """flat[positions] += weight * values, in place; all on the CPU, `positions` (n,) int64."""
    _check(_add_at(flat.numpy(), positions.numpy(), values.numpy(), np.float32(weight)), flat)


def count_at(counts: Tensor, positions: Tensor) -> None:
    """counts[positions] += 1, in place; int16, all on the CPU."""
    _check(_count_at(counts.numpy(), positions.numpy()), counts)


def _check(outside: int, flat: Tensor) -> None:
    if outside >= 0:
        raise IndexError(f"position number {outside} is outside a buffer of {len(flat)} values")


@compiled
def _add_at(
    flat: NDArray[np.float32], positions: NDArray[np.int64], values: NDArray[np.float32], weight: np.float32
) -> int:
    """-1, or the number of the first position that is outside; what is before it has been added."""
    for i in range(len(positions)):
        if positions[i] < 0 or positions[i] >= len(flat):
            return i
        product = values[i] * weight
        flat[positions[i]] += product
    return -1


@compiled
def _count_at(counts: NDArray[np.int16], positions: NDArray[np.int64]) -> int:
    """-1, or the number of the first position that is outside; what is before it has been counted."""
    for i in range(len(positions)):
        if positions[i] < 0 or positions[i] >= len(counts):
            return i
        counts[positions[i]] += 1
    return -1
