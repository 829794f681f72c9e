"""How the ranks of a replica ran their steps: what was planned, what it took, and how good the plans were.

Rank 0 writes a line for each step (`steps-REPLICA.jsonl`, `dist_train.sequence.ahead`). Seconds are means over all
steps, except in the curve: there over blocks of steps, so that a long run has no more points than a short one.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dist_train.report.contents import SequencePart, StepsPart
from dist_train.report.metrics import read_json_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.run_directory import RunDirectory

MOST_POINTS = 200
Step = dict[str, Any]


def sequence_parts(directory: RunDirectory) -> tuple[SequencePart, ...]:
    """A part for each replica that wrote down its steps."""
    files = sorted(directory.path.glob("steps-*.jsonl"))
    parts = ((file.stem.removeprefix("steps-"), list(read_json_lines(file))) for file in files)
    return tuple(_part(replica, steps) for replica, steps in parts if steps)


def _part(replica: str, steps: Sequence[Step]) -> SequencePart:
    degrees = Counter(int(degree) for step in steps for degree in str(step.get("degrees", "")).split())
    measured_s, predicted_s = _mean(steps, "measured_s"), _mean(steps, "predicted_s")
    return SequencePart(
        replica=replica,
        planners=dict(sorted(Counter(str(step.get("planner", "")) for step in steps).items())),
        steps=len(steps),
        late=sum(int(step.get("late", 0)) for step in steps),
        gap=_mean(steps, "gap"),
        planning_s=_mean(steps, "planning_s"),
        waiting_s=_mean(steps, "waiting_s"),
        predicted_s=predicted_s,
        measured_s=measured_s,
        reduce_s=_mean(steps, "reduce_s"),
        groups=dict(sorted(degrees.items())),
        curve=_curve(steps),
    )


def _curve(steps: Sequence[Step]) -> tuple[StepsPart, ...]:
    size = -(-len(steps) // MOST_POINTS)
    blocks = [steps[start : start + size] for start in range(0, len(steps), size)]
    return tuple(
        StepsPart(
            step=min((n + 1) * size, len(steps)),
            planning_s=_mean(block, "planning_s"),
            waiting_s=_mean(block, "waiting_s"),
            predicted_s=_mean(block, "predicted_s"),
            measured_s=_mean(block, "measured_s"),
        )
        for n, block in enumerate(blocks)
    )


def _mean(steps: Sequence[Step], name: str) -> float | None:
    """Of those steps for which it is known."""
    known = [
        float(value) for step in steps if isinstance(value := step.get(name), int | float) and math.isfinite(value)
    ]
    return fmean(known) if known else None
