"""Levels: every code is its own level's code, and the error is what the docstring says."""

from __future__ import annotations

import numpy as np
import pytest

from compression import level
from compression.codec import PayloadError

pytestmark = pytest.mark.timeout(60)
ALL = np.arange(level.LARGEST + 1, dtype=np.uint16)


def test_golden() -> None:
    values = np.array([0.0, 1.0, 0.5, 1.0625, 2.0, 1e-45, 1e300, 3.4e38])
    assert level.encode(values).tolist() == [0, 0x7F0, 0x7E0, 0x7F1, 0x800, 0, 0xFEF, 0xFEF]


def test_every_code_comes_back_and_levels_ascend() -> None:
    levels = level.decode(ALL)
    assert np.isfinite(levels).all()
    assert (np.diff(levels) > 0).all()
    np.testing.assert_array_equal(level.encode(levels.astype(np.float64)), ALL)


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_at_most_a_thirty_second(seed: int) -> None:
    values = np.exp(np.random.default_rng(seed).uniform(-86, 88, 100_000))
    error = np.abs(level.decode(level.encode(values)) - values) / values
    assert error.max() <= 1 / 32 * (1 + 1e-6)


@pytest.mark.parametrize("code", [0xFF0, 0xFF1, 0xFFF])
def test_codes_of_no_finite_level_are_refused(code: int) -> None:
    with pytest.raises(PayloadError, match="levels: code 0xff"):
        level.decode(np.array([0, code], np.uint16))
