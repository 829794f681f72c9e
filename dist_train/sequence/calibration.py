"""Coefficients of the cost model from measured times on the machine at hand, with what they leave unexplained.

    seconds = b_1 + b_2 [d > 1] + a_1 S_2 / d + a_2 S_1 / d + g_d S_1 / d,      S_1 = sum s, S_2 = sum s^2         (1)

is linear in the coefficients, which cannot be negative: non-negative least squares. Rows are divided by their
seconds, so
that each sample counts by its relative error. g_d is a_3 / v_d; a_3, the bytes of a token, is known from the
model's shape
(4 tensors, there and back, layers x hidden x bytes a value), so v_d = a_3 / g_d. Degree 1 communicates nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import nnls

from dist_train.run_directory import write_atomically
from dist_train.sequence.cost import CostModel
from dist_train.sequence.errors import PlanningError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VERSION = 1
FASTEST_BYTES_PER_SECOND = 1e15
"""Stands for a bandwidth so high that the samples show no cost."""


@dataclass(frozen=True)
class Sample:
    """One measured group: a forward and backward pass over packed sequences."""

    lengths: tuple[int, ...]
    degree: int
    seconds: float


@dataclass(frozen=True)
class Residual:
    """How far the fitted model is from one sample."""

    degree: int
    tokens: int
    measured_s: float
    predicted_s: float

    @property
    def relative_error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Calibration:
    """A fitted cost model, and each sample beside its prediction."""

    cost: CostModel
    residuals: tuple[Residual, ...]

    @property
    def mean_error(self) -> float:
        """Mean absolute relative error over the samples."""
        return float(np.mean([abs(residual.relative_error) for residual in self.residuals]))

    def save(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_atomically(path, (json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n").encode())


def all_to_all_bytes(layers: int, hidden_size: int, bytes_per_value: int) -> float:
    """Bytes that the all-to-alls of a step move for a token: q, k, v and the output, forward and backward."""
    return 4.0 * 2 * layers * hidden_size * bytes_per_value


def fit(samples: Sequence[Sample], token_bytes: float) -> Calibration:
    """The coefficients of (1) that explain the samples best; `token_bytes` is a_3. PlanningError with too few samples.

    Tokens cost something in every result: where noise hides it, b_1 and b_2 are 0, and the residuals show how far off
    that is.
    """
    degrees = sorted({sample.degree for sample in samples if sample.degree > 1})
    _check(samples, degrees, token_bytes)
    b1, b2, a1, a2, *per_degree = _coefficients(samples, degrees, first=0)
    if a1 + a2 <= 0:  # small groups on a busy machine: all of it looks constant, and a plan must know that it is not
        b1, b2, a1, a2, *per_degree = _coefficients(samples, degrees, first=2)
    if a1 + a2 <= 0:
        raise PlanningError("the samples show no cost of tokens: measure groups of degree 1, too")
    speeds = [
        min(token_bytes / cost, FASTEST_BYTES_PER_SECOND) if cost > 0 else FASTEST_BYTES_PER_SECOND
        for cost in per_degree
    ]
    cost = CostModel(a1, a2, b1, token_bytes if degrees else 0.0, b2, tuple(zip(degrees, speeds, strict=True)))
    return Calibration(cost, tuple(_residual(cost, sample) for sample in samples))


def _coefficients(samples: Sequence[Sample], degrees: Sequence[int], first: int) -> list[float]:
    """Of (1), those before number `first` being left out, as 0."""
    rows = np.array([_row(sample, degrees) for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    weighted = rows[:, first:] / seconds[:, None]
    scale = np.maximum(np.linalg.norm(weighted, axis=0), 1e-300)
    found = nnls(weighted / scale, np.ones(len(seconds)))[0] / scale
    return [0.0] * first + [float(value) for value in found]


def load(path: Path) -> Calibration:
    """What `Calibration.save` wrote; PlanningError that names the file when it is something else."""
    try:
        content = json.loads(path.read_text())
        return _calibration(content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PlanningError(f"{path}: no calibration can be read from it ({type(error).__name__}: {error})") from None


def _calibration(content: dict[str, Any]) -> Calibration:
    if content["version"] != VERSION:
        raise PlanningError(f"version {content['version']} is not {VERSION}: calibrate again")
    cost = dict(content["cost"])
    speeds = tuple((int(degree), float(speed)) for degree, speed in cost.pop("bytes_per_second"))
    named = {str(name): float(value) for name, value in cost.items()}
    return Calibration(
        CostModel(bytes_per_second=speeds, **named), tuple(Residual(**entry) for entry in content["residuals"])
    )


def _check(samples: Sequence[Sample], degrees: Sequence[int], token_bytes: float) -> None:
    unknown = 3 + (1 if degrees else 0) + len(degrees)
    if len(samples) < unknown:
        raise PlanningError(f"{len(samples)} samples for {unknown} coefficients: measure at least as many")
    if degrees and token_bytes <= 0:
        raise PlanningError(f"token_bytes = {token_bytes} must be above 0 when groups of several ranks were measured")
    for sample in samples:
        if sample.seconds <= 0 or sample.degree < 1 or not sample.lengths or min(sample.lengths) < 1:
            raise PlanningError(f"{sample}: needs sequences of at least 1 token, a degree and seconds above 0")


def _row(sample: Sample, degrees: Sequence[int]) -> list[float]:
    tokens = float(sum(sample.lengths)) / sample.degree
    squares = float(sum(length * length for length in sample.lengths)) / sample.degree
    own = [tokens if sample.degree == degree else 0.0 for degree in degrees]
    return [1.0, float(sample.degree > 1), squares, tokens, *own]  # (1)


def _residual(cost: CostModel, sample: Sample) -> Residual:
    predicted = cost.group_s(sample.lengths, sample.degree)
    return Residual(sample.degree, sum(sample.lengths), sample.seconds, predicted)
