"""What quantizing loses: no more than the best choice of levels does, and less than the published code's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import PayloadError
from compression.layout import ChunkLayout
from compression.quantizer import PRICE, QUANTIZERS, Quantizer, _two_means
from compression.quota import Quota

pytestmark = pytest.mark.timeout(60)

SIGN, SIGN_MAGNITUDE = QUANTIZERS["sign-magnitude", 1], QUANTIZERS["sign-magnitude", 2]
EXACT, STATISTICAL = QUANTIZERS["sign-magnitude", 32], QUANTIZERS["statistical", 2]


def restored(quantizer: Quantizer, values: np.ndarray, quota: Quota) -> np.ndarray:
    codes, levels = quantizer.quantize(values, quota)
    assert codes.shape == values.shape
    assert levels.shape == (quantizer.num_levels(quota),)
    assert int(codes.max()) >> quantizer.code_bits == 0
    return quantizer.dequantize(codes, levels, quota)


def test_golden_sign_is_times_the_mean_magnitude() -> None:
    quota = Quota(ChunkLayout({"w": (2, 4)}, 4), 2)
    values = np.array([1, -3, 0, -0.5], np.float32)
    assert restored(SIGN, values, quota).tolist() == [2, -2, 0.25, -0.25]


def test_golden_sign_magnitude_finds_the_two_groups() -> None:
    quota = Quota(ChunkLayout({"w": (4,)}, 4), 4)
    values = np.array([1, -7, 9, -1], np.float32)
    codes, levels = SIGN_MAGNITUDE.quantize(values, quota)
    assert codes.tolist() == [0, 3, 2, 1]
    assert levels.tolist() == [0x7F0, 0x820]  # 1 and 8
    assert SIGN_MAGNITUDE.dequantize(codes, levels, quota).tolist() == [1, -8, 8, -1]


def test_golden_statistical_bins_around_the_mean_of_the_tensor() -> None:
    """Mean 0, sigma 1.98 (over n - 1), step 2.97: 2 is 0.67 of it, in an outer bin; 1.375 is 0.46, in the middle."""
    quota = Quota(ChunkLayout({"a": (4,), "b": (1,)}, 4), 4)
    codes, levels = STATISTICAL.quantize(np.array([2, -2, 1.375, -1.375, 5], np.float32), quota)
    assert codes.tolist() == [3, 1, 2, 2, 2]
    assert levels.view(np.float32).tolist() == [0, -2, 0, 2, 5, 5, 5, 5]
    assert STATISTICAL.dequantize(codes, levels, quota).tolist() == [2, -2, 0, 0, 5]


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=9), st.integers(0, 3))
def test_oracle_the_two_levels_have_the_least_error_and_price_of_all_splits(
    magnitudes: list[float], missing: int
) -> None:
    ascending = np.array([[0.0] * missing + sorted(magnitudes)], np.float32)
    means, least = _two_means(ascending, np.array([len(magnitudes)]))
    low, high = means[0]
    ordered = np.sort(np.array(magnitudes, np.float32)).astype(np.float64)
    n, energy = len(ordered), (ordered**2).sum()

    def cost(low: float, high: float, num_low: int) -> float:
        error = ((ordered[:num_low] - low) ** 2).sum() + ((ordered[num_low:] - high) ** 2).sum()
        return float(error + PRICE * energy * _entropy(num_low / n))

    best = min(cost(ordered[:i].mean() if i else 0.0, ordered[i:].mean(), i) for i in range(n))
    splits = [i for i in range(n) if ordered[i] == least[0]]
    assert low <= high * (1 + 1e-12)
    assert min(cost(low, high, i) for i in splits) <= best + 1e-6 * energy


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _laplace(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.laplace(size=n)


def _student(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(3, n)


@pytest.mark.parametrize(("draw", "times"), [(_normal, 2.5), (_laplace, 2.5), (_student, 2.0)])
@pytest.mark.parametrize("k", [64, 128])
@pytest.mark.parametrize("seed", range(2))
def test_sign_magnitude_beats_the_statistical_quantizer(draw, times: float, k: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    """At equal bits a value; even the sign alone, at half of them, is no worse."""
    chunks = draw(np.random.default_rng(seed), 256 * 4096).astype(np.float32).reshape(256, 4096)
    kept = np.take_along_axis(chunks, np.argsort(-np.abs(chunks), axis=1)[:, :k], axis=1).reshape(-1)
    quota = Quota(ChunkLayout({"w": (1024, 1024)}, 4096), k)

    def error(quantizer: Quantizer) -> float:
        off = restored(quantizer, kept, quota).astype(np.float64) - kept
        return float((off**2).sum() / (kept.astype(np.float64) ** 2).sum())

    assert error(SIGN_MAGNITUDE) * times < error(STATISTICAL)
    assert error(SIGN) < error(STATISTICAL) * 1.02


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=lambda q: type(q).__name__)
@pytest.mark.parametrize(
    "values",
    [[0.0] * 4, [1.5] * 4, [-1.5] * 4, [1e-45, -1e-45, 1e-40, 0], [3.4e38, -3.4e38, 3.4e38, 3.4e38], [1e30, 1, 1, -1]],
    ids=["zeros", "equal", "equal-negative", "denormal", "largest", "outlier"],
)
def test_odd_values_come_back_finite_with_their_signs(quantizer: Quantizer, values: list[float]) -> None:
    given_values = np.array(values, np.float32)
    got = restored(quantizer, given_values, Quota(ChunkLayout({"w": (2, 2)}, 4), 4))
    assert np.isfinite(got).all()
    if quantizer is EXACT:
        assert got.tobytes() == given_values.tobytes()
    if quantizer is not STATISTICAL:
        assert ((np.sign(got) == np.sign(given_values)) | (got == 0)).all()
    assert float(np.abs(got).max()) <= float(np.abs(given_values).max()) * (1 + 1 / 32)


def test_an_outlier_costs_the_others_nothing_in_two_bits() -> None:
    values = np.array([1e30, 1, 1, -1], np.float32)
    got = restored(SIGN_MAGNITUDE, values, Quota(ChunkLayout({"w": (2, 2)}, 4), 4))
    assert got[1:].tolist() == [1, 1, -1]


def test_short_chunks_do_not_count_what_they_lack() -> None:
    quota = Quota(ChunkLayout({"b": (5,)}, 4), 3)
    values = np.array([4, -2, 2, 8], np.float32)
    assert quota.counts.tolist() == [3, 1]
    assert restored(SIGN, values, quota).tolist() == [2.625, -2.625, 2.625, 8]  # 8/3 to the nearest level
    assert restored(SIGN_MAGNITUDE, values, quota).tolist() == values.tolist()


def test_levels_in_the_wrong_order_or_not_finite_are_refused() -> None:
    quota = Quota(ChunkLayout({"w": (2, 2)}, 4), 1)
    one = np.zeros(1, np.uint8)
    with pytest.raises(PayloadError, match=r"chunk 0 has low 1 above high 0\.5"):
        SIGN_MAGNITUDE.dequantize(one, np.array([0x7F0, 0x7E0], np.uint16), quota)
    with pytest.raises(PayloadError, match="levels: number 2 is nan"):
        STATISTICAL.dequantize(one, np.array([0, 0, 0x7FC00000, 0], np.uint32), quota)
    with pytest.raises(PayloadError, match="codes: number 0 is inf"):
        EXACT.dequantize(np.array([0x7F800000], np.uint32), np.zeros(0, np.uint8), quota)
