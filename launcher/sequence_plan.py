"""What `dist-train plan-sequences` does: lengths from a file, a plan on the screen."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dist_train.config import ConfigError
from dist_train.sequence.calibration import load
from dist_train.sequence.cost import REFERENCE_7B, CostModel
from dist_train.sequence.errors import PlanningError
from dist_train.sequence.planner import plan_step
from dist_train.sequence.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.sequence.plan import Group, MicroBatch, SequencePlan


Number = TypeVar("Number", int, float)


def plan(  # noqa: PLR0917 - as many as there are options
    lengths_file: Path, calibration: Path | None, count: int, capacity: Sequence[int], speed: Sequence[float], mode: str
) -> tuple[SequencePlan, list[int], Ranks, CostModel]:
    """The plan of the lengths in a file ("-": stdin), with what it was made for. ConfigError when there can be none."""
    try:
        cost = load(calibration).cost if calibration is not None else REFERENCE_7B
        ranks = Ranks(_each(capacity, count, "--capacity"), _each(speed, count, "--speed"))
        lengths = _lengths(lengths_file)
        return plan_step(lengths, ranks, cost, mode), lengths, ranks, cost
    except PlanningError as error:
        raise ConfigError(str(error)) from None


def as_json(made: SequencePlan, lengths: Sequence[int], ranks: Ranks, cost: CostModel) -> str:
    """The plan as JSON: facts first, then micro-batches of groups, each with its ranks, sequences, tokens and
    seconds."""
    bound = made.lower_bound_s
    facts: dict[str, Any] = {
        "planner": made.planner,
        "predicted_s": made.predicted_s,
        "lower_bound_s": None if math.isnan(bound) else bound,
        "gap": None if math.isnan(bound) else made.predicted_s / bound - 1,
        "solve_s": made.solve_s,
        "micro_batches": [
            [_group_facts(group, lengths, ranks, cost) for group in micro_batch.groups]
            for micro_batch in made.micro_batches
        ],
    }
    return json.dumps(facts)


def as_text(made: SequencePlan, lengths: Sequence[int], ranks: Ranks, cost: CostModel) -> str:
    """A line for the step, and one for each micro-batch."""
    held = np.array(lengths)
    lines = [
        f"{len(lengths)} sequences, {int(held.sum())} tokens on {len(ranks)} ranks by {made.planner}: {_seconds(made)}"
    ]
    for number, micro_batch in enumerate(made.micro_batches):
        lines.append(f"  micro-batch {number}: {_line(micro_batch, lengths, ranks, cost)}")
    return "\n".join(lines)


def _seconds(made: SequencePlan) -> str:
    predicted = f"{made.predicted_s:.3f} s predicted"
    if math.isnan(made.lower_bound_s):
        return f"{predicted}, planned in {made.solve_s:.2f} s"
    gap = made.predicted_s / made.lower_bound_s - 1
    return f"{predicted}, at most {gap:.1%} above the best possible, planned in {made.solve_s:.2f} s"


def _line(micro_batch: MicroBatch, lengths: Sequence[int], ranks: Ranks, cost: CostModel) -> str:
    facts = [_group_facts(group, lengths, ranks, cost) for group in micro_batch.groups]
    degrees = Counter(len(group.ranks) for group in micro_batch.groups)
    shape = " + ".join(f"{degrees[degree]} x {degree}" for degree in sorted(degrees, reverse=True))
    slowest = max(fact["seconds"] for fact in facts)
    return f"{slowest:.3f} s, {sum(fact['tokens'] for fact in facts)} tokens, groups {shape}"


def _group_facts(group: Group, lengths: Sequence[int], ranks: Ranks, cost: CostModel) -> dict[str, Any]:
    held = [int(lengths[k]) for k in group.sequences]
    return {
        "ranks": list(group.ranks),
        "sequences": list(group.sequences),
        "tokens": sum(held),
        "seconds": cost.group_s(held, len(group.ranks), ranks.speed_of(group.ranks)),
    }


def _each(given: Sequence[Number], count: int, option: str) -> tuple[Number, ...]:
    """A value for each rank: one for all of them, or as many as there are ranks."""
    if len(given) not in {1, count}:
        raise ConfigError(f"{option} was given {len(given)} times for {count} ranks: give it once, or once a rank")
    return tuple(given) * (count if len(given) == 1 else 1)


def _lengths(source: Path) -> list[int]:
    wanted = "one length in tokens a line is wanted"
    try:
        words = (sys.stdin.read() if str(source) == "-" else source.read_text(encoding="utf-8")).split()
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror}; {wanted}, in a file or, as -, on stdin") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: no text; {wanted}") from None
    if stranger := next((word for word in words if not (word.isascii() and word.isdecimal())), None):
        raise ConfigError(f"{source}: {stranger[:40]!r} is no length; {wanted}")
    return [int(word) for word in words]
