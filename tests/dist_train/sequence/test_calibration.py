"""Calibration: what made the samples is found again, and what is stored is what was fitted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.sequence.calibration import Sample, all_to_all_bytes, fit, load
from dist_train.sequence.cost import REFERENCE_7B, CostModel
from dist_train.sequence.errors import PlanningError

TRUE = CostModel(5e-9, 2e-4, 0.6, 2e6, 0.05, ((2, 1e11), (4, 5e10), (8, 1e10)))


def samples(noise: float = 0.0) -> list[Sample]:
    random = np.random.default_rng(5)
    made = []
    for degree in (1, 2, 4, 8):
        for _ in range(12):
            lengths = tuple(int(length) for length in random.integers(1, 9000, random.integers(1, 5)))
            seconds = TRUE.group_s(lengths, degree) * (1 + noise * float(random.standard_normal()))
            made.append(Sample(lengths, degree, seconds))
    return made


def test_oracle_exact_samples_give_back_their_coefficients() -> None:
    found = fit(samples(), TRUE.all_to_all_bytes).cost
    assert found.quadratic_s == pytest.approx(TRUE.quadratic_s, rel=1e-4)
    assert found.linear_s == pytest.approx(TRUE.linear_s, rel=1e-4)
    assert found.fixed_s == pytest.approx(TRUE.fixed_s, rel=1e-4)
    assert found.communication_fixed_s == pytest.approx(TRUE.communication_fixed_s, rel=1e-3)
    for (degree, speed), (true_degree, true_speed) in zip(found.bytes_per_second, TRUE.bytes_per_second, strict=True):
        assert degree == true_degree
        assert speed == pytest.approx(true_speed, rel=1e-2)


def test_noise_leaves_residuals_of_its_size() -> None:
    calibration = fit(samples(noise=0.02), TRUE.all_to_all_bytes)
    assert 0.005 < calibration.mean_error < 0.03
    assert len(calibration.residuals) == len(samples())


def test_what_is_stored_is_read_back(tmp_path: Path) -> None:
    calibration = fit(samples(noise=0.02), TRUE.all_to_all_bytes)
    calibration.save(tmp_path / "calibration.json")
    assert load(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize("content", ["", "{}", '{"version": 2}', '{"version": 1, "cost": {"a": 1}, "residuals": []}'])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(PlanningError, match=r"calibration\.json: no calibration"):
        load(path)


@given(st.lists(st.floats(1e-4, 1.0), min_size=12, max_size=12))
def test_tokens_cost_something_whatever_was_measured(seconds: list[float]) -> None:
    """Small groups on a busy machine: more tokens may have taken less time."""
    cases = [((tokens,) * documents, degree) for degree in (1, 2) for documents in (1, 4) for tokens in (3, 10, 100)]
    calibration = fit([Sample(*case, s) for case, s in zip(cases, seconds, strict=True)], 1000.0)
    assert calibration.cost.quadratic_s + calibration.cost.linear_s > 0
    assert calibration.cost.group_s([1000], 1) > calibration.cost.group_s([10], 1) > 0


def test_falling_seconds_are_explained_by_tokens_alone() -> None:
    calibration = fit([Sample((tokens,), 1, 1 / tokens) for tokens in (1, 2, 4, 8)], 0.0)
    assert calibration.cost.fixed_s == 0
    assert calibration.cost.linear_s + calibration.cost.quadratic_s > 0
    assert calibration.mean_error > 0.3


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(PlanningError, match="3 samples for 5 coefficients"):
        fit([Sample((5,), 1, 0.1), Sample((6,), 1, 0.1), Sample((6,), 2, 0.1)], 1.0)


def test_golden_the_reference_model_by_hand() -> None:
    assert all_to_all_bytes(32, 4096, 2) == REFERENCE_7B.all_to_all_bytes == 2_097_152
    # 1000 tokens on one rank, in ms: 5.128e-6 * 1e6 + 0.1839576 * 1000 + 629.3563
    assert REFERENCE_7B.group_s([1000], 1) == pytest.approx(0.8184419)
    # On two ranks half of that, the fixed part whole, and 2_097_152 * 1000 / 2 bytes at 119.54 GB/s.
    assert REFERENCE_7B.group_s([1000], 2) == pytest.approx(0.6293563 + 0.0945428 + 0.0087717662, rel=1e-6)
