"""How good the sequence planner's plans are and how long they take, in the published cost model.

    python -m benchmarks.sequence_planner --wikipedia-lengths wikipedia_lengths.txt.zst --json

For {Wikipedia, CommonCrawl-like, GitHub-like} x {192K, 384K} on 64 ranks, 512 sequences a step: the plan, its certified
bound, the best static degree (one for all steps, wide enough for the context), the best homogeneous degree of each
step, and HiGHS for ten CPU seconds on each micro-batch (FlexSP's formulation): on those that FlexSP cuts, M_min to
M_min + 4 of them (`milp_cut_s`, the fastest), and on the adaptive plan's own (`milp_s`). These are so full that lengths
rounded up to 16 buckets may not fit, so there it is given 64 buckets as well, for as long, and the better counts. Then
1024 ranks.

Seconds of planning are CPU seconds of this process, which is one thread: what one core needs, whatever else runs here.
Without the file of real lengths, Wikipedia-like ones are drawn from a lognormal, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.sequence_milp import BUCKETS, micro_batch_s
from benchmarks.sequence_milp import step_s as published_step_s
from dist_train.sequence.bound import Bound, certify
from dist_train.sequence.cost import REFERENCE_7B
from dist_train.sequence.planner import plan_step
from dist_train.sequence.problem import problem_of
from dist_train.sequence.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dist_train.sequence.plan import SequencePlan

    Draw = Callable[[np.random.Generator, int], NDArray[np.int64]]

CAPACITY_TOKENS = {192 * 1024: 6449, 384 * 1024: 6407}
SEQUENCES = 512
RANKS = 64
MORE_BUCKETS = 64


@dataclass(frozen=True)
class Row:
    """One step. Seconds of the cost model, but for the last five."""

    lengths: str
    context_tokens: int
    batch: int
    makespan_s: float
    lower_bound_s: float
    gap: float
    planner_gap: float
    best_homogeneous_s: float
    static_s: dict[int, float]
    milp_s: float | None
    milp_micro_batches_s: tuple[tuple[float, float | None], ...]
    """Of each micro-batch: the plan's seconds, and those of HiGHS, if it found a grouping."""
    milp_cut_s: float | None
    solve_s: float
    solve_wall_s: float
    certify_s: float
    milp_solve_s: float | None


def main() -> None:
    """Prints a table, or with --json every row and the summary."""
    options = _options().parse_args()
    draws = _draws(options.wikipedia_lengths)
    plan_step([5000, 100], Ranks.equal(2, 6449), REFERENCE_7B)  # compiles the loops, or loads them
    rows = []
    for name, draw in draws.items():
        for context in CAPACITY_TOKENS:
            for batch in range(options.batches):
                rows.append(_row(name, draw, context, batch, options))
                if not options.json:
                    print(_line(rows[-1]), flush=True)
    facts = {
        "ranks": RANKS,
        "sequences": SEQUENCES,
        "wikipedia": "real lengths" if options.wikipedia_lengths else "lognormal: no file of real lengths was given",
        "rows": [asdict(row) for row in rows],
        "distributions": _by_distribution(rows),
        "summary": _summary(rows),
        "large": [_large(name, draw) for name, draw in draws.items()] if options.large else [],
    }
    print(json.dumps(facts) if options.json else json.dumps({k: v for k, v in facts.items() if k != "rows"}, indent=1))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikipedia-lengths", type=Path, help="real lengths, one a line, zstandard")
    parser.add_argument("--batches", type=int, default=10, help="steps for each distribution and context")
    parser.add_argument("--certify-s", type=float, default=20.0, help="CPU seconds to tighten each bound; 0: not")
    parser.add_argument("--milp-s", type=float, default=10.0, help="CPU seconds of HiGHS for each micro-batch")
    parser.add_argument("--milp-batches", type=int, default=10, help="of how many steps HiGHS solves the micro-batches")
    parser.add_argument("--milp-more", type=int, default=4, help="HiGHS also solves M_min to M_min + this many runs")
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True, help="also plan for 1024 ranks")
    parser.add_argument("--json", action="store_true")
    return parser


def _row(name: str, draw: Draw, context: int, batch: int, options: argparse.Namespace) -> Row:
    lengths = _batch(name, draw, context, batch, SEQUENCES)
    ranks = Ranks.equal(RANKS, CAPACITY_TOKENS[context])
    cpu = time.process_time()
    plan = plan_step(lengths, ranks, REFERENCE_7B)
    solve_s = time.process_time() - cpu
    cpu, bound_s = time.process_time(), plan.lower_bound_s
    if options.certify_s:
        problem = problem_of(lengths, ranks, REFERENCE_7B)
        bound_s = certify(problem, plan.predicted_s, Bound(bound_s, ()), options.certify_s).step_s
    certify_s = time.process_time() - cpu
    widest = [degree for degree in ranks.degrees if degree * CAPACITY_TOKENS[context] >= context]
    static = {degree: plan_step(lengths, ranks, REFERENCE_7B, f"static:{degree}").predicted_s for degree in widest}
    homogeneous = plan_step(lengths, ranks, REFERENCE_7B, "best-homogeneous").predicted_s
    cpu = time.process_time()
    milp_s = milp_cut_s = None
    each: tuple[tuple[float, float | None], ...] = ()
    if batch < options.milp_batches:
        each = _milp(plan, lengths, ranks, options.milp_s)
        milp_s = _sum_of([milp for _, milp in each])
        cut_s = published_step_s(lengths, ranks, REFERENCE_7B, options.milp_s, options.milp_more)
        milp_cut_s = cut_s if math.isfinite(cut_s) else None
    return Row(
        lengths=name,
        context_tokens=context,
        batch=batch,
        makespan_s=plan.predicted_s,
        lower_bound_s=bound_s,
        gap=plan.predicted_s / bound_s - 1,
        planner_gap=plan.predicted_s / plan.lower_bound_s - 1,
        best_homogeneous_s=homogeneous,
        static_s=static,
        milp_s=milp_s,
        milp_micro_batches_s=each,
        milp_cut_s=milp_cut_s,
        solve_s=solve_s,
        solve_wall_s=plan.solve_s,
        certify_s=certify_s,
        milp_solve_s=time.process_time() - cpu if batch < options.milp_batches else None,
    )


def _milp(
    plan: SequencePlan, lengths: NDArray[np.int64], ranks: Ranks, limit_s: float
) -> tuple[tuple[float, float | None], ...]:
    """HiGHS groups each of the plan's micro-batches anew."""
    each = []
    for one in plan.micro_batches:
        ours_s = max(REFERENCE_7B.group_s(lengths[list(group.sequences)], len(group.ranks)) for group in one.groups)
        held = lengths[[k for group in one.groups for k in group.sequences]]
        milp_s = min(micro_batch_s(held, ranks, REFERENCE_7B, limit_s, buckets) for buckets in (BUCKETS, MORE_BUCKETS))
        each.append((ours_s, milp_s if math.isfinite(milp_s) else None))
    return tuple(each)


def _sum_of(seconds: list[float | None]) -> float | None:
    """None when one is missing."""
    known = [one for one in seconds if one is not None]
    return sum(known) if len(known) == len(seconds) else None


def _by_distribution(rows: list[Row]) -> list[dict[str, object]]:
    keys = sorted({(row.lengths, row.context_tokens) for row in rows})
    return [_of_one([row for row in rows if (row.lengths, row.context_tokens) == key]) for key in keys]


def _of_one(rows: list[Row]) -> dict[str, object]:
    adaptive = statistics.mean(row.makespan_s for row in rows)
    static = {degree: statistics.mean(row.static_s[degree] for row in rows) for degree in rows[0].static_s}
    solved = [(row.makespan_s, row.milp_s) for row in rows if row.milp_s is not None]
    return {
        "lengths": rows[0].lengths,
        "context_tokens": rows[0].context_tokens,
        "makespan_s": adaptive,
        "lower_bound_s": statistics.mean(row.lower_bound_s for row in rows),
        "gap": statistics.mean(row.gap for row in rows),
        "worst_gap": max(row.gap for row in rows),
        "best_static_degree": min(static, key=lambda degree: static[degree]),
        "best_static_s": min(static.values()),
        "best_homogeneous_s": statistics.mean(row.best_homogeneous_s for row in rows),
        "speedup_vs_static": min(static.values()) / adaptive,
        "milp_over_adaptive": statistics.mean(milp / ours for ours, milp in solved) if solved else None,
        "solve_s": statistics.median(row.solve_s for row in rows),
    }


def _summary(rows: list[Row]) -> dict[str, object]:
    solved = [(row.makespan_s, row.milp_s) for row in rows if row.milp_s is not None]
    cut = [(row.makespan_s, row.milp_cut_s) for row in rows if row.milp_cut_s is not None]
    each = [pair for row in rows for pair in row.milp_micro_batches_s]
    grouped = [milp / ours for ours, milp in each if milp is not None]
    return {
        "mean_gap": statistics.mean(row.gap for row in rows),
        "worst_gap": max(row.gap for row in rows),
        "mean_planner_gap": statistics.mean(row.planner_gap for row in rows),
        "worst_planner_gap": max(row.planner_gap for row in rows),
        "median_solve_s": statistics.median(row.solve_s for row in rows),
        "worst_solve_s": max(row.solve_s for row in rows),
        "median_solve_wall_s": statistics.median(row.solve_wall_s for row in rows),
        "slower_than_static": sum(row.makespan_s > min(row.static_s.values()) for row in rows),
        "slower_than_homogeneous": sum(row.makespan_s > row.best_homogeneous_s * (1 + 1e-9) for row in rows),
        "milp_over_adaptive": statistics.mean(milp / ours for ours, milp in solved) if solved else None,
        "milp_steps_solved": len(solved),
        "milp_micro_batches": len(each),
        "milp_micro_batches_solved": len(grouped),
        "milp_over_adaptive_of_these": statistics.mean(grouped) if grouped else None,
        "milp_micro_batches_faster": sum(ratio < 1 - 1e-9 for ratio in grouped),
        "milp_cut_over_adaptive": statistics.mean(milp / ours for ours, milp in cut) if cut else None,
        "milp_cut_steps_solved": len(cut),
        "milp_steps_without_a_plan": sum(row.milp_s is None and row.milp_solve_s is not None for row in rows),
    }


def _large(name: str, draw: Draw) -> dict[str, object]:
    """1024 ranks, 16 times the sequences, 192K."""
    context = 192 * 1024
    lengths = _batch(name, draw, context, 0, 16 * SEQUENCES)
    cpu = time.process_time()
    plan = plan_step(lengths, Ranks.equal(1024, CAPACITY_TOKENS[context]), REFERENCE_7B)
    return {
        "lengths": name,
        "ranks": 1024,
        "sequences": len(lengths),
        "makespan_s": plan.predicted_s,
        "gap": plan.predicted_s / plan.lower_bound_s - 1,
        "solve_s": time.process_time() - cpu,
        "solve_wall_s": plan.solve_s,
    }


def _line(row: Row) -> str:
    milp = f", MILP {row.milp_s:.3f} s" if row.milp_s is not None else ""
    milp += f", MILP's own cut {row.milp_cut_s:.3f} s" if row.milp_cut_s is not None else ""
    return (
        f"{row.lengths} {row.context_tokens // 1024}K {row.batch}: {row.makespan_s:.3f} s, gap {row.gap:.2%} "
        f"({row.planner_gap:.2%} by the planner's own bound), static {min(row.static_s.values()):.3f} s, "
        f"homogeneous {row.best_homogeneous_s:.3f} s{milp}, solved in {row.solve_s:.2f} s"
    )


def _batch(name: str, draw: Draw, context: int, batch: int, count: int) -> NDArray[np.int64]:
    """Sequences over the context are dropped, and others drawn in their place."""
    random = np.random.default_rng([batch, context, *name.encode()])
    drawn = draw(random, 2 * count)
    return drawn[drawn <= context][:count]


def _draws(wikipedia: Path | None) -> dict[str, Draw]:
    return {
        "wikipedia": _sampled(wikipedia) if wikipedia is not None else _mixed(0.0, 5.85, 1.35, 1.0, 1.0),
        "commoncrawl-like": _mixed(0.0901, 6.858, 1.257, 8000, 1.502),
        "github-like": _mixed(0.0414, 7.006, 1.428, 12000, 1.369),
    }


def _sampled(path: Path) -> Draw:
    import zstandard  # noqa: PLC0415 - only needed for this file

    with zstandard.open(path, "rt") as lines:
        lengths = np.array([int(line) for line in lines], dtype=np.int64)
    return lambda random, count: lengths[random.integers(0, len(lengths), count)]


def _mixed(tail: float, mean_log: float, deviation_log: float, tail_from: float, exponent: float) -> Draw:
    """With probability 1 - tail lognormal, else Pareto."""

    def draw(random: np.random.Generator, count: int) -> NDArray[np.int64]:
        pareto = tail_from * (1 - random.random(count)) ** (-1 / exponent)
        body = random.lognormal(mean_log, deviation_log, count)
        drawn = np.where(random.random(count) < tail, pareto, body)
        return np.maximum(1, np.minimum(drawn, math.ldexp(1.0, 40))).astype(np.int64)

    return draw


if __name__ == "__main__":
    main()
