r"""What a sequence-parallel group costs, in seconds.

A group of degree d that holds sequences of s_k tokens takes

    T = f_d + \sum_k (a_1 s_k^2 + a_2 s_k) / (d \rho) + \sum_k a_3 s_k / (d v_d),                      (1)
    f_d = b_1 + b_2 [d > 1]                                                                            (2)

with rho the speed of the group's slowest rank (1: the rank that was calibrated), a_3 the bytes that the all-to-alls of
one step move for a token, and v_d the bytes a second that a rank moves inside a group of degree d. A micro-batch takes
as long as its slowest group, a step as long as its micro-batches one after another.

Paper: FlexSP (Wang et al., ASPLOS 2025), section 4.1.  Differs: degree 1 is allowed and pays no communication, and
ranks may be unequal.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_train.sequence.errors import PlanningError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dist_train.sequence.plan import SequencePlan
    from dist_train.sequence.ranks import Ranks


@dataclass(frozen=True)
class CostModel:
    """The coefficients of (1) and (2). Fitted by `calibration.fit`, or given."""

    quadratic_s: float
    """a_1: seconds for a squared token: attention."""
    linear_s: float
    """a_2: seconds for a token: everything else."""
    fixed_s: float
    """b_1: seconds for a group, however little it holds."""
    all_to_all_bytes: float = 0.0
    """a_3: bytes that the all-to-alls of a step move for a token, forward and backward."""
    communication_fixed_s: float = 0.0
    """b_2: seconds for a group of more than one rank: the latency of its all-to-alls."""
    bytes_per_second: tuple[tuple[int, float], ...] = ()
    """v_d: pairs of a degree above 1 and what one rank moves inside a group of it, degrees rising. A degree that is not
    named has the bandwidth of the next smaller one that is, or else of the smallest."""

    def __post_init__(self) -> None:
        named = {
            "quadratic_s": self.quadratic_s,
            "linear_s": self.linear_s,
            "fixed_s": self.fixed_s,
            "all_to_all_bytes": self.all_to_all_bytes,
            "communication_fixed_s": self.communication_fixed_s,
        }
        for name, value in named.items():
            if not (np.isfinite(value) and value >= 0):
                raise PlanningError(f"{name} = {value} of the cost model must be a number, and at least 0")
        degrees = [degree for degree, _ in self.bytes_per_second]
        if degrees != sorted(set(degrees)) or any(degree < 2 for degree in degrees):
            raise PlanningError(f"the degrees {degrees} of bytes_per_second must rise, from 2 on")
        if not all(np.isfinite(speed) and speed > 0 for _, speed in self.bytes_per_second):
            raise PlanningError("each bandwidth of bytes_per_second must be above 0")
        if self.quadratic_s + self.linear_s <= 0:
            raise PlanningError("quadratic_s and linear_s are both 0: a sequence must cost something")

    def fixed_of_s(self, degree: int) -> float:
        """f_d of (2)."""
        return self.fixed_s + (self.communication_fixed_s if degree > 1 else 0.0)

    def communication_s(self, degree: int) -> float:
        """Seconds that a token costs all ranks of a group together in all-to-alls: a_3 / v_d, and 0 for degree 1."""
        if degree == 1 or not self.all_to_all_bytes or not self.bytes_per_second:
            return 0.0
        at = bisect.bisect_right([known for known, _ in self.bytes_per_second], degree) - 1
        return self.all_to_all_bytes / self.bytes_per_second[max(at, 0)][1]

    def computation_s(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Device-seconds of each sequence on the calibrated rank: a_1 s^2 + a_2 s. Shape of `lengths`."""
        tokens = lengths.astype(np.float64)
        return tokens * (self.quadratic_s * tokens + self.linear_s)

    def group_s(self, lengths: Iterable[int], degree: int, speed: float = 1.0) -> float:
        """T of (1); 0 for a group without sequences."""
        held = np.fromiter(lengths, dtype=np.int64)
        if not len(held):
            return 0.0
        computed = float(self.computation_s(held).sum()) / speed
        return self.fixed_of_s(degree) + (computed + self.communication_s(degree) * float(held.sum())) / degree  # (1)

    def step_s(self, plan: SequencePlan, lengths: NDArray[np.int64], ranks: Ranks) -> float:
        """Predicted seconds of a step: its micro-batches' slowest groups, one after another."""
        return sum(
            max(
                self.group_s(lengths[list(group.sequences)], len(group.ranks), ranks.speed_of(group.ranks))
                for group in micro_batch.groups
            )
            for micro_batch in plan.micro_batches
        )


REFERENCE_7B = CostModel(
    quadratic_s=5.128e-9,
    linear_s=0.1839576e-3,
    fixed_s=629.3563e-3,
    all_to_all_bytes=4 * 2 * 32 * 4096 * 2,
    bytes_per_second=((2, 119.54e9), (4, 104.07e9), (8, 96.5e9), (16, 10.33e9), (32, 5.94e9), (64, 4.87e9)),
)
"""A Llama of 7B parameters (32 layers, hidden 4096) on 64 A100 of 40 GB: what the published planner was measured
with."""
