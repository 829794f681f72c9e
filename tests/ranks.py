"""Ranks of a replica as real processes that talk gloo: what tests of sequence parallelism run on."""

from __future__ import annotations

import multiprocessing
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from dist_train.sequence.groups import join_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Imported once, by the process that all ranks are forked from.
PRELOADED = ["torch", "torch.distributed.fsdp", "transformers", "dist_train.sequence.step", "dist_train.inner"]


def run_on_ranks(count: int, folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(ranks, *arguments)` on each of `count` ranks; fails with the first traceback of any of them."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    meeting = folder / f"meeting-{count}-{work.__name__}"
    start_processes(  # type: ignore[no-untyped-call]
        _rank, (count, f"file://{meeting}", work, arguments), nprocs=count, start_method="forkserver"
    )


def _rank(rank: int, count: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    try:
        ranks = join_ranks()
        work(ranks, *arguments)
        ranks.wait_for_all()
    finally:
        dist.destroy_process_group()
