"""The stages of a pipeline as processes: they train a few steps together and write down what came of it.

`python -m tests.dist_train.pipeline.stage_process FOLDER`: the ranks meet through a file in FOLDER. They are forked
from one process that has imported torch, and run all scenarios, since a start costs seconds; those of two stages run on
the first two ranks.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from dist_train.config import ConfigError
from dist_train.inner import InnerOptimizer
from dist_train.pipeline.basis import Basis
from dist_train.pipeline.engine import PipelineEngine
from dist_train.pipeline.stage import Stage
from dist_train.pipeline.terms import Terms, agree, make_bond, make_stage
from tests.dist_train.pipeline.pipelines import batch, config, exact

WORLD = 4
STEPS = 3
SCENARIOS: dict[str, tuple[tuple[int, ...], str]] = {
    "two": ((3, 1), "subspace"),
    "four": ((1, 1, 1, 1), "subspace"),
    "two none": ((3, 1), "none"),
    "two free": ((3, 1), "projected-stream"),
}
LENGTHS = [(17, 17, 12, 9, 5, 5, 2, 1), (30, 8, 8), (40, 3, 2, 2, 1, 1)]


def main() -> None:
    context = multiprocessing.get_context("fork")
    stages = [context.Process(target=stage_of, args=(rank, Path(sys.argv[1]))) for rank in range(WORLD)]
    for stage in stages:
        stage.start()
    for stage in stages:
        stage.join()
    sys.exit(max(abs(stage.exitcode or 0) for stage in stages))


def stage_of(rank: int, folder: Path) -> None:
    """A rank, from start to end."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    pair = dist.new_group([0, 1])
    for name, (split, compression) in SCENARIOS.items():
        if rank < len(split):
            scenario(name, split, compression, pair if len(split) == 2 else dist.group.WORLD, folder)
    if rank < 2:
        disagree(rank, pair, folder)
    dist.barrier()
    dist.destroy_process_group()


def scenario(
    name: str, split: tuple[int, ...], compression: str, group: dist.ProcessGroup | None, folder: Path
) -> None:
    """Trains, and writes the parameters, losses, norms and figures of this stage."""
    settings = config(split, compression=compression)
    terms, rank = exact(settings), dist.get_rank(group)
    agree(terms, group)
    stage: Stage = make_stage(settings, terms, rank).double()
    bond = make_bond(terms, stage)
    begin(stage, terms)
    engine = PipelineEngine(stage, bond, terms.micro_batches, group)
    settle = None if bond is None else bond.project_weights
    trainer = InnerOptimizer(stage.model, settings.inner, 100, engine, settle)
    losses, norms = [], []
    for step in range(STEPS):
        losses.append(trainer.accumulate(batch(step, LENGTHS[step])))
        norms.append(trainer.step())
    evaluation = engine.evaluate([batch(50), batch(51)])
    schedules = len(engine._schedules)
    save_file(
        {key: p.detach().contiguous() for key, p in stage.model.named_parameters()},
        folder / f"{name} {rank}.safetensors",
    )
    told = {
        "losses": losses,
        "norms": norms,
        "evaluation": evaluation,
        "schedules": schedules,
        "health": stage.health.figures(),
        "owned": stage.owned,
    }
    (folder / f"{name} {rank}.json").write_text(json.dumps(told), encoding="utf-8")


def begin(stage: Stage, terms: Terms) -> None:
    """Where weights begin after a sync."""
    bond = make_bond(terms, stage)
    if bond is not None:
        with torch.no_grad():
            for name, parameter in stage.model.named_parameters():
                parameter.copy_(bond.begin(name, parameter.detach().clone()))


def disagree(rank: int, group: dist.ProcessGroup | None, folder: Path) -> None:
    """Two stages with different bases, then with different cuts: both must be told."""
    terms = exact(config())
    assert terms.basis is not None
    basis = Basis(terms.basis.raw, version=rank)
    others = [
        Terms(terms.spans, 32, "subspace", "fp64", 8, basis),
        Terms(terms.spans, 32, "subspace", "fp64", 8 + rank, terms.basis),
    ]
    problems = []
    for other in others:
        try:
            agree(other, group)
        except ConfigError as error:
            problems.append(str(error))
    (folder / f"disagree {rank}.json").write_text(json.dumps(problems), encoding="utf-8")


if __name__ == "__main__":
    main()
