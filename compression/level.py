"""Levels: the few magnitudes that stand for all kept values of a chunk, in 12 bits each.

The code of a level is the upper part of its fp32 bits, sign bit left out: 8 bits of exponent, 4 of mantissa.

    code  = (bits(level) + 2^18) >> 19,  at most 0xFEF          nearest, halves up        (1)
    level = fp32 of the bits  code << 19                        exact                     (2)

So codes ascend with levels, 16 of them an octave, from 0 over the denormals to 3.3e38; 0xFF0 and above would be inf
or NaN and are refused. The error is at most 1/32 of a level (above the denormals), the same for all of the chunk,
and error feedback sends it later.

Why 12 bits: relative squared error on the 64 largest of 4096 values, two levels, by bits of mantissa

    mantissa bits           3 (11)    4 (12)    5 (13)    7 (bf16)   23 (fp32)
    normal                 0.00450   0.00388   0.00377   0.00373     0.00373
    Laplace                0.01193   0.01135   0.01123   0.01118     0.01118
    Student-t, 3 degrees   0.05441   0.05400   0.05390   0.05387     0.05387

and a range that needs no common base, so that one huge chunk cannot push the levels of the others to zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compression.codec import PayloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = 12
LARGEST = 0xFEF
SHIFT = 19


def encode(levels: NDArray[np.float64]) -> NDArray[np.uint16]:
    """The codes of nonnegative finite levels, any shape."""
    with np.errstate(over="ignore", under="ignore"):
        raw = levels.astype(np.float32).view(np.uint32)
    codes: NDArray[np.uint32] = np.minimum((raw + (1 << (SHIFT - 1))) >> SHIFT, LARGEST)  # (1)
    return codes.astype(np.uint16)


def decode(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The levels of codes; PayloadError if one is not finite."""
    if codes.max(initial=0) > LARGEST:
        raise PayloadError(f"levels: code {int(codes.max()):#x} is not a finite level (at most {LARGEST:#x})")
    raw: NDArray[np.uint32] = np.left_shift(codes, SHIFT, dtype=np.uint32)
    return raw.view(np.float32)  # (2)
