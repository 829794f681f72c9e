"""Steps on real ranks under every way of planning: tokens a second, and predicted against measured seconds.

    python -m benchmarks.sequence_step [--json] [--ranks 4] [--steps 6]

The ranks are processes of this machine that talk gloo, one thread each; the documents are those of the embedded corpus,
whole up to `--sequence-tokens`, so their lengths have a long tail. The cost model is fitted to measured groups first
(`dist_train/sequence/measure.py`). Then the planners take turns on the same batches, in an order that changes with every
step, so that all of them meet the same noise. A step is timed from its first micro-batch to the summed gradients, on
the slowest rank; planning is not in it, and is shown beside it.

    tokens_per_second    tokens of all steps / their measured seconds
    against_static       median over steps of: the best static degree's seconds / this planner's
    prediction_error     mean over steps of |predicted - measured| / measured
                         predicted: the plan's seconds, and the time to sum gradients as it was measured alone
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from dist_train.config import DataConfig, ModelConfig
from dist_train.data.batches import Batch, batches_of
from dist_train.data.corpus import open_corpus
from dist_train.data.stream import Stream
from dist_train.model import build_model
from dist_train.sequence.ahead import PlanAhead
from dist_train.sequence.groups import RankGroups, join_ranks
from dist_train.sequence.measure import calibration_cases, measure, measure_reduction
from dist_train.sequence.step import accumulate

from comms.leases import Segment
if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from dist_train.sequence.plan import SequencePlan

    Planner = Callable[[tuple[int, ...]], SequencePlan]


@dataclass(frozen=True)
class Settings:
    """What is trained, on how many ranks."""

    ranks: int
    steps: int
    sequence_tokens: int
    batch_tokens: int
    tokens_per_rank: int
    """The budget of a rank in one micro-batch."""
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int

    @property
    def model(self) -> ModelConfig:
        """Bytes in, bytes out."""
        sizes = {name: getattr(self, name) for name in ("hidden_size", "layers", "heads", "kv_heads")}
        return ModelConfig(**sizes, vocab_size=256)


@dataclass(frozen=True)
class Row:
    """One step by one planner."""

    step: int
    mode: str
    tokens: int
    planner: str
    micro_batches: int
    degrees: str
    solve_s: float
    lower_bound_s: float
    predicted_s: float
    """The plan's, and `reduction_s`."""
    measured_s: float
    """On the slowest rank."""


def main() -> None:
    """Runs the ranks, and prints what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    for name, default in asdict(Settings(4, 6, 4096, 32_768, 2048, 128, 4, 8, 4)).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    settings = Settings(**options)
    with tempfile.TemporaryDirectory() as folder:
        start_processes(  # type: ignore[no-untyped-call]
            rank_main, (settings, folder), nprocs=settings.ranks, start_method="spawn"
        )
        found = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


def rank_main(rank: int, settings: Settings, folder: str) -> None:
    """What every rank does; rank 0 writes what was measured into the folder."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings.ranks)
    try:
        ranks = join_ranks()
        found = run(settings, ranks, Path(folder) / str(rank))
        if rank == 0:
            (Path(folder) / "result.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def documents(settings: Settings, folder: Path) -> list[Batch]:
    """The batches of the first steps of a run, the same on every rank."""
    corpus = open_corpus(DataConfig(sequence_tokens=settings.sequence_tokens), vocab_size=256, seed=0, directory=folder)
    lease = (Segment(0, 0, settings.batch_tokens * settings.steps),)
    return list(batches_of(Stream(corpus, seed=0), lease, settings.steps))


def run(settings: Settings, ranks: RankGroups, folder: Path) -> dict[str, Any]:
    """Calibrates, then lets the planners take turns."""
    model, batches = build_model(settings.model, seed=0), documents(settings, folder)
    samples = measure(model, ranks, calibration_cases(ranks.count, settings.heads, settings.tokens_per_rank))
    reduction_s = measure_reduction(model, ranks)
    if ranks.rank==0:
        for s in samples: print(s)
        print(reduction_s)
    return {}
if __name__ == "__main__":
    main()
