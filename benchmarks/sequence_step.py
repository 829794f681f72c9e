"""Steps on real ranks under every way of planning: tokens a second, and predicted against measured seconds.

    python -m benchmarks.sequence_step [--json] [--ranks 4] [--steps 8] ...

The ranks are processes of this machine that talk gloo, one thread each. The documents are those of the embedded corpus,
whole up to `--sequence-tokens`, so their lengths have a long tail. The cost model is fitted to measured groups first
(`dist_train/sequence/measure.py`). Then the ways of planning take turns on the same batches, in an order that changes
with every step, so that all of them meet the same noise. A step is timed from its first micro-batch to the summed
gradients, on the slowest rank; planning is not in it and stands beside it. In the end the adaptive planner runs as it
does in a run, one step ahead in a process of its own, and what its steps waited for it is measured.

    tokens_per_second    tokens of all steps / their measured seconds
    vs_best_static       median over steps of: seconds of the best static degree / seconds of this way, in the same turn
    prediction_error     mean over steps of |predicted - measured| / measured;
                         predicted: the plan's seconds, and the time to sum gradients as it was measured alone

With more ranks than cores, or other work beside them, ranks wait for their turn on a core, which no cost model knows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from comms.leases import Segment
from dist_train.config import DataConfig, ModelConfig
from dist_train.data.batches import Batch, batches_of
from dist_train.data.corpus import open_corpus
from dist_train.data.stream import Stream
from dist_train.model import build_model
from dist_train.sequence.ahead import PlanAhead
from dist_train.sequence.calibration import Sample, all_to_all_bytes, fit
from dist_train.sequence.errors import PlanningError
from dist_train.sequence.groups import RankGroups, join_ranks
from dist_train.sequence.measure import calibration_cases, measure, measure_reduction
from dist_train.sequence.planner import plan_step
from dist_train.sequence.ranks import Ranks
from dist_train.sequence.step import accumulate

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from torch import nn

    from dist_train.sequence.plan import SequencePlan

    Planner = Callable[[tuple[int, ...]], SequencePlan]


@dataclass(frozen=True)
class Settings:
    """What is trained, on how many ranks."""

    ranks: int = 4
    steps: int = 8
    sequence_tokens: int = 2048
    """Longest document; longer ones are cut."""
    batch_tokens: int = 16_384
    tokens_per_rank: int = 1024
    """The budget of a rank in one micro-batch."""
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2

    @property
    def model(self) -> ModelConfig:
        """Bytes in, bytes out."""
        sizes = {name: getattr(self, name) for name in ("hidden_size", "layers", "heads", "kv_heads")}
        return ModelConfig(**sizes, vocab_size=256)


@dataclass(frozen=True)
class Row:
    """One step by one way of planning."""

    step: int
    mode: str
    tokens: int
    plan: str
    """The degrees of each micro-batch's groups: "2 1 1 | 4"."""
    solve_s: float
    lower_bound_s: float
    predicted_s: float
    """The plan's, and the time to sum gradients."""
    measured_s: float
    """On the slowest rank."""

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s


def main() -> None:
    """Runs the ranks, and prints what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    settings = Settings(**options)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        start_processes(rank_main, (settings, folder), nprocs=settings.ranks)  # type: ignore[no-untyped-call]  # torch's
        found = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    print(json.dumps(found, indent=1) if as_json else table(found))


def rank_main(rank: int, settings: Settings, folder: str) -> None:
    """What every rank does; rank 0 writes what was measured into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=settings.ranks)
    try:
        found = run(settings, join_ranks(), Path(folder))
        if rank == 0:
            (Path(folder) / "result.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def run(settings: Settings, ranks: RankGroups, folder: Path) -> dict[str, Any]:
    """Calibrates, then lets the ways of planning take turns."""
    model, batches = build_model(settings.model, seed=0), documents(settings, folder)
    samples = measure(model, ranks, calibration_cases(ranks.count, settings.heads, settings.tokens_per_rank))
    reduction_s = measure_reduction(model, ranks)
    calibration = fit(
        [Sample(found.lengths, found.degree, found.seconds) for found in samples],
        all_to_all_bytes(settings.layers, settings.hidden_size, bytes_per_value=4),
    )
    cost = calibration.cost
    for_planner = Ranks.equal(ranks.count, settings.tokens_per_rank, max_degree=settings.heads)
    ways = ["adaptive", "best-homogeneous", *(f"static:{degree}" for degree in for_planner.degrees)]
    planners = {way: partial(plan_step, ranks=for_planner, cost=cost, planner=way) for way in ways}
    rows = []
    with ThreadPoolExecutor(1) as executor:
        for step, batch in enumerate(batches):
            for way in ways[step % len(ways) :] + ways[: step % len(ways)]:
                row = one_step(model, batch, ranks, planners[way], executor=executor, step=step)
                rows += [row] if row else []
    rows = [Row(**(asdict(row) | {"predicted_s": row.predicted_s + reduction_s})) for row in rows]
    return {
        "settings": asdict(settings),
        "document_lengths": [list(batch.document_lengths) for batch in batches],
        "cost": asdict(cost),
        "reduction_s": reduction_s,
        "calibration_error": calibration.mean_error,
        "residuals": [asdict(residual) for residual in calibration.residuals],
        "ways": summary(rows, len(batches)),
        "ahead": one_step_ahead(model, batches, ranks, planners["adaptive"], planners["best-homogeneous"]),
        "steps": [asdict(row) for row in rows],
    }


def documents(settings: Settings, folder: Path) -> list[Batch]:
    """The batches of the first steps of a run, the same on every rank."""
    corpus = open_corpus(DataConfig(sequence_tokens=settings.sequence_tokens), vocab_size=256, seed=0, directory=folder)
    lease = (Segment(0, 0, settings.batch_tokens * settings.steps),)
    return list(batches_of(Stream(corpus, seed=0), lease, settings.steps))


def one_step(
    model: nn.Module, batch: Batch, ranks: RankGroups, planner: Planner, *, executor: Executor, step: int
) -> Row | None:
    """Plans, then runs and times a step; None where there is no such plan for it."""
    planning = PlanAhead(ranks, planner, planner, patience_s=None, executor=executor)
    try:
        plan = planning.take(batch.document_lengths).plan
    except PlanningError:
        return None
    ranks.wait_for_all()
    measured_s = max(ranks.gather(accumulate(model, batch, plan, ranks).measured_s))
    shape = " | ".join(" ".join(str(len(group.ranks)) for group in micro.groups) for micro in plan.micro_batches)
    return Row(
        step, plan.planner, batch.num_tokens, shape, plan.solve_s, plan.lower_bound_s, plan.predicted_s, measured_s
    )


def one_step_ahead(
    model: nn.Module, batches: list[Batch], ranks: RankGroups, planner: Planner, fallback: Planner
) -> list[dict[str, float | int | str]]:
    """The metrics of the same steps, each planned while the one before it runs."""
    with PlanAhead(ranks, planner, fallback, patience_s=60.0) as planning:
        return [
            planned.metrics(accumulate(model, batch, planned.plan, ranks)) for batch, planned in planning.steps(batches)
        ]


def summary(rows: list[Row], steps: int) -> dict[str, dict[str, float]]:
    """What each way of planning reached; a static degree that can't run every step is left out."""
    by_way: dict[str, list[Row]] = {}
    for row in rows:
        by_way.setdefault(row.mode, []).append(row)
    complete = {way: mine for way, mine in by_way.items() if len(mine) == steps}
    seconds = {way: sum(row.measured_s for row in mine) for way, mine in complete.items()}
    best_static = min((way for way in complete if way.startswith("static")), key=seconds.__getitem__)
    return {
        way: {
            "tokens_per_second": sum(row.tokens for row in mine) / seconds[way],
            "vs_best_static": statistics.median(
                other.measured_s / row.measured_s for row, other in zip(mine, complete[best_static], strict=True)
            ),
            "prediction_error": statistics.fmean(row.error for row in mine),
            "predicted_s": sum(row.predicted_s for row in mine),
            "measured_s": seconds[way],
            "median_solve_s": statistics.median(row.solve_s for row in mine),
            "is_best_static": float(way == best_static),
        }
        for way, mine in complete.items()
    }


def table(found: dict[str, Any]) -> str:
    """A row for each way of planning, for people."""
    lines = ["way of planning    tokens/s   vs best static   predicted s   measured s   error   planning s"]
    for way, figures in found["ways"].items():
        mark = "*" if figures["is_best_static"] else " "
        lines.append(
            f"{way:17}{mark} {figures['tokens_per_second']:9.0f}   {figures['vs_best_static']:13.2f}x  "
            f"{figures['predicted_s']:11.2f}  {figures['measured_s']:11.2f}  {figures['prediction_error']:6.1%}  "
            f"{figures['median_solve_s']:10.4f}"
        )
    waited = [step["waiting_s"] for step in found["ahead"]]
    lines.append(f"one step ahead: the first step waited {waited[0]:.3f} s, the others {sum(waited[1:]):.3f} s in all")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
