"""What becomes of the kept values: a code for each, and the levels that the codes stand for.

`Sign`, 1 bit: v -> sign(v) m, with the mean magnitude of the chunk,

    m = mean |v|                                                                              (1)

`SignMagnitude`, 2 bits: v -> sign(v) low or sign(v) high. Of the n magnitudes of a chunk in descending order
the first j make `high` and the rest `low`, with the j that leaves the least squared error plus a price for the bits
that say which is which, found exactly:

    j = argmax_j  H_j^2 / j + L_j^2 / (n - j) - PRICE S h(j / n)                              (2)
        H_j, L_j: sums of the first j and of the others;  S: sum of squares;  h: binary entropy in bits
    high = H_j / j,  low = L_j / (n - j)                                                      (3)
    v is `high` where |v| >= the j-th magnitude                                               (4)

Kept values of real pseudo-gradients differ little in magnitude. PRICE = 1/512 of the chunk's energy for a bit a value
brings the magnitude bit from 0.84 to 0.3 to 0.5 bits after entropy coding, the error from 0.0009 to 0.0013 (sign
alone: 0.0030) of the energy; what is lost goes on in the error feedback.

`Exact`, 32 bits: the fp32 value is its own code.

`Statistical`, 2 bits: the published code's. Over all kept values v of a tensor (not of a chunk), n of them,

    shift = mean v,  sigma = sqrt(sum (v - shift)^2 / (n - 1)),  step = 6 sigma / 4, or 1 if that is 0    (5)
    code  = clamp(round_half_even((v - shift) / step) + 2, 0, 3)                              (6)
    level of a code = shift + mean of (v - shift) over its values, shift if it has none; sent as fp32     (7)

Its bins are centred at -3, -1.5, 0 and 1.5 sigma. Kept values lie on both sides of a gap around zero, so mostly two of
its codes are used; on heavy tails the bin around zero swallows small values of both signs.

Every sum is taken in fp64 in a fixed order (`accumulate`, `bincount`), never by a reduction whose order depends on the
machine: equal values give equal bytes everywhere.

Paper: Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", arXiv 2508.15706 (Q); (5) to (7) after
the authors' code.
Differs: (1) to (4) are ours. In (7) the shift is added to the levels rather than sent.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compression import level
from compression.codec import PayloadError
from compression.logarithm import LOG_BITS, log2_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compression.quota import Quota

    Codes = NDArray[np.unsignedinteger[Any]]
    Values = NDArray[np.float32]


PRICE = 1 / 512
"""What a bit for each value may cost in squared error, as a share of the chunk's energy."""


class Quantizer(Protocol):
    """Kept values to codes and levels, and back."""

    quantizer_id: int
    """Its number in the header."""
    code_bits: int
    level_bits: int

    def num_levels(self, quota: Quota) -> int:
        """Levels of a fragment."""
        ...

    def quantize(self, values: Values, quota: Quota) -> tuple[Codes, Codes]:
        """The codes (total,) and level codes (num_levels,) of finite values (total,)."""
        ...

    def dequantize(self, codes: Codes, levels: Codes, quota: Quota) -> Values:
        """The values (total,) that codes stand for. PayloadError if levels are not finite or out of order."""
        ...


class Sign:
    """One bit: the sign times the chunk's mean magnitude. Code: 1 where the value is negative."""

    quantizer_id = 1
    code_bits = 1
    level_bits = level.BITS

    def num_levels(self, quota: Quota) -> int:
        """One of each chunk."""
        return quota.layout.num_chunks

    def quantize(self, values: Values, quota: Quota) -> tuple[Codes, Codes]:
        """Signs and mean magnitudes."""
        sums = np.add.accumulate(quota.rows(np.abs(values)), axis=1, dtype=np.float64)[:, -1]
        return (values < 0).astype(np.uint8), level.encode(sums / quota.counts)  # (1)

    def dequantize(self, codes: Codes, levels: Codes, quota: Quota) -> Values:
        """Plus or minus the level of the chunk."""
        return _signed(quota.spread(level.decode(levels.astype(np.uint16))), codes)


class SignMagnitude:
    """Two bits: the sign times one of two levels of the chunk. Code: bit 0 negative, bit 1 the high level."""

    quantizer_id = 2
    code_bits = 2
    level_bits = level.BITS

    def num_levels(self, quota: Quota) -> int:
        """Two of each chunk: low, high."""
        return 2 * quota.layout.num_chunks

    def quantize(self, values: Values, quota: Quota) -> tuple[Codes, Codes]:
        """Signs and magnitude bits; the levels as low, high, low, high."""
        magnitudes = np.abs(values)
        means, least = _two_means(np.sort(quota.rows(magnitudes), axis=1), quota.counts)
        high = magnitudes >= quota.spread(least)  # (4)
        codes = (values < 0).view(np.uint8) | np.left_shift(high.view(np.uint8), 1, dtype=np.uint8)
        return codes, level.encode(means).reshape(-1)

    def dequantize(self, codes: Codes, levels: Codes, quota: Quota) -> Values:
        """Plus or minus the low or the high level of the chunk."""
        low, high = level.decode(levels.astype(np.uint16)).reshape(-1, 2).T
        if (low > high).any():
            chunk = int(np.flatnonzero(low > high)[0])
            raise PayloadError(f"levels: chunk {chunk} has low {low[chunk]:g} above high {high[chunk]:g}")
        return _signed(
            np.where(codes > 1, quota.spread(high), quota.spread(low)), np.bitwise_and(codes, 1, dtype=np.uint8)
        )


class Exact:
    """32 bits: the value as it is."""

    quantizer_id = 32
    code_bits = 32
    level_bits = 1

    def num_levels(self, quota: Quota) -> int:  # noqa: ARG002 - the seam's signature
        """None."""
        return 0

    def quantize(self, values: Values, quota: Quota) -> tuple[Codes, Codes]:  # noqa: ARG002
        """The fp32 bits."""
        return values.view(np.uint32), np.zeros(0, np.uint8)

    def dequantize(self, codes: Codes, levels: Codes, quota: Quota) -> Values:  # noqa: ARG002
        """The fp32 values."""
        return check_finite(codes.astype(np.uint32).view(np.float32), "codes")


class Statistical:
    """Two bits, the published code's: four bins of 1.5 sigma around the mean of a tensor's kept values."""

    quantizer_id = 3
    code_bits = 2
    level_bits = 32

    def num_levels(self, quota: Quota) -> int:
        """Four of each tensor."""
        return 4 * len(quota.layout.spans)

    def quantize(self, values: Values, quota: Quota) -> tuple[Codes, Codes]:
        """Bin numbers, and the mean of each bin as fp32 bits."""
        tensor, num_tensors = quota.tensor_of_values(), len(quota.layout.spans)
        kept = np.bincount(tensor, minlength=num_tensors)
        exact = values.astype(np.float64)
        shift = np.bincount(tensor, exact, num_tensors) / kept
        centred = exact - shift[tensor]
        variance = np.bincount(tensor, centred * centred, num_tensors) / np.maximum(kept - 1, 1)
        step = 1.5 * np.sqrt(variance)
        step[step == 0] = 1.0  # (5)
        codes = np.clip(np.rint(centred / step[tensor]) + 2, 0, 3).astype(np.int64)  # (6)
        bins = tensor * 4 + codes
        members = np.bincount(bins, minlength=4 * num_tensors)
        means = np.bincount(bins, centred, 4 * num_tensors) / np.maximum(members, 1)
        return codes.astype(np.uint8), (np.repeat(shift, 4) + means).astype(np.float32).view(np.uint32)  # (7)

    def dequantize(self, codes: Codes, levels: Codes, quota: Quota) -> Values:
        """The level of each code in its tensor's codebook."""
        codebooks = check_finite(levels.astype(np.uint32).view(np.float32), "levels")
        return np.take(codebooks, quota.tensor_of_values() * 4 + codes)


def check_finite(values: Values, field: str) -> Values:
    """`values`; PayloadError if one of them is not finite."""
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise PayloadError(f"{field}: number {worst} is {values[worst]}, not finite")
    return values


def _two_means(ascending: Values, counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], Values]:
    """(num_chunks, 2): low and high of each row of `ascending` (num_chunks, k): zeros, then counts[c] values.

    And (num_chunks,): the least value that is high.

    One group only (j = n) when it is as good, for instance for a single value; then low = high.
    """
    k = ascending.shape[1]
    low_sums = np.zeros(ascending.shape)
    np.add.accumulate(ascending[:, :-1], axis=1, dtype=np.float64, out=low_sums[:, 1:])  # the first i: L with j = k - i
    high_sums = np.add.accumulate(ascending[:, ::-1], axis=1, dtype=np.float64)[:, ::-1]  # from i on: H with j = k - i
    num_high = np.arange(k, 0, -1)
    num_low = counts[:, None] - num_high
    gain = high_sums * high_sums / num_high + low_sums * low_sums / np.maximum(num_low, 1)
    squares = np.add.accumulate(np.square(ascending, dtype=np.float64), axis=1)[:, -1:]
    gain -= PRICE * squares * binary_entropy(k)[counts[:, None] - 1, num_high - 1]
    gain[num_low < 0] = -1.0
    best = np.argmax(gain, axis=1)[:, None]  # (2)
    high = np.take_along_axis(high_sums, best, 1)[:, 0] / num_high[best[:, 0]]
    low_count = np.take_along_axis(num_low, best, 1)[:, 0]
    low = np.take_along_axis(low_sums, best, 1)[:, 0] / np.maximum(low_count, 1)
    means = np.stack([np.where(low_count > 0, low, high), high], axis=1)  # (3)
    return means, np.take_along_axis(ascending, best, 1)[:, 0]


@cache
def binary_entropy(k: int) -> NDArray[np.float64]:
    """(k, k): h(j / n) of row n - 1, column j - 1, j high ones of n values, from integer logarithms; 0 where j >= n."""
    log = [0.0, *(log2_of(i) / 2**LOG_BITS for i in range(1, k + 1))]
    entropy = np.zeros((k, k))
    for n in range(1, k + 1):
        for j in range(1, n):
            entropy[n - 1, j - 1] = log[n] - (j * log[j] + (n - j) * log[n - j]) / n
    return entropy


def _signed(magnitudes: Values, negative: Codes) -> Values:
    """Magnitudes with the sign bit put where `negative` is 1."""
    signs = np.left_shift(negative, 31, dtype=np.uint32)
    return np.bitwise_or(signs, magnitudes.view(np.uint32)).view(np.float32)


QUANTIZERS: dict[tuple[str, int], Quantizer] = {
    ("sign-magnitude", 1): Sign(),
    ("sign-magnitude", 2): SignMagnitude(),
    ("sign-magnitude", 32): Exact(),
    ("statistical", 2): Statistical(),
}
"""By what a user chooses: quantizer and value_bits."""
