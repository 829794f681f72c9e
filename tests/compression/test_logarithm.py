"""Logarithms in integers: right to many digits, and never decreasing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compression.logarithm import LOG, LOG_BITS, POWER, POWER_BITS, log2_of, two_to_minus

pytestmark = pytest.mark.timeout(100)


def test_golden_tables() -> None:
    assert LOG[[0, 512, 1024]].tolist() == [0, int(math.log2(1.5) * 2**26), 1 << 26]
    assert POWER[[0, 512, 1024]].tolist() == [1 << 30, int(2**30 / math.sqrt(2)), 1 << 29]
    np.testing.assert_allclose(LOG, np.log2(1 + np.arange(1025) / 1024) * 2**26, atol=1)
    np.testing.assert_allclose(POWER, 2.0 ** (30 - np.arange(1025) / 1024), atol=1)


@pytest.mark.parametrize("seed", range(2))
def test_logarithms_and_powers_are_close_and_monotonic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    near = [2**e + d for e in range(3, 53) for d in (-2, -1, 0, 1, 2)]
    xs = sorted({1, 2, 3, 2**53 - 1, *near, *(int(x) for x in 2 ** rng.uniform(0, 52.9, 2000))})
    logs = [log2_of(x) for x in xs]
    assert logs == sorted(logs)
    assert max(abs(log / 2**LOG_BITS - math.log2(x)) for log, x in zip(logs, xs, strict=True)) < 2e-7
    ys = sorted({0, *(int(y) for y in rng.uniform(0, 32 * 2**26, 2000))})
    powers = [two_to_minus(y) for y in ys]
    assert powers == sorted(powers, reverse=True)
    assert max(abs(p / 2**POWER_BITS - 2 ** (-y / 2**26)) for p, y in zip(powers, ys, strict=True)) < 2e-7


@pytest.mark.parametrize("exponent", range(54))
def test_powers_of_two_are_exact(exponent: int) -> None:
    if exponent < 53:
        assert log2_of(1 << exponent) == exponent << LOG_BITS
    if exponent <= POWER_BITS:
        assert two_to_minus(exponent << LOG_BITS) == 1 << (POWER_BITS - exponent)
