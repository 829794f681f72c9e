"""Ranks as processes, forked from a server that has imported torch once, and not from a process with threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from comms.ledger import Ledger
from comms.process_group import Bounds, Place, grpc_group
from comms.security import Loopback, Security

PATIENCE_S = 60.0
Backend = Literal["gloo", "grpc"]
BOUNDS = Bounds(deadline_s=30.0, outage_deadline_s=2.0, buffer_bytes=8 * 2**20, most_tensor_bytes=64 * 2**20)
Work = Callable[..., None]
"""What a rank does in its group: a function of rank, ranks, and further arguments."""


def context() -> ForkServerContext:
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.comms.rank_cases", "tests.comms.rank_processes"])
    return made


class Ranks:
    """The processes of one group."""

    def __init__(
        self, folder: Path, backend: Backend, ranks: int, work: Work, *arguments: Any,
        security: Security | None = None, bounds: Bounds = BOUNDS, queue: bool = False,
    ) -> None:  # fmt: skip
        made = context()
        self.addresses: Queue[str] = made.Queue()
        self.said: Queue[Any] = made.Queue()
        """What the ranks have to say to the test: with `queue` it is the first of `arguments`."""
        if queue:
            arguments = (self.said, *arguments)
        self.processes: list[ForkServerProcess] = [
            made.Process(
                target=_be,
                args=(folder, backend, rank, ranks, self.addresses, security or Loopback(), bounds, work, arguments),
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def finish(self) -> list[int | None]:
        """Waits until all have ended; their exit codes."""
        for process in self.processes:
            process.join(PATIENCE_S)
        return [process.exitcode for process in self.processes]

    def end(self) -> None:
        """Kills what is left."""
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def running(*arguments: Any, **options: Any) -> Any:
    """Ranks, none of which is left behind."""
    ranks = Ranks(*arguments, **options)
    try:
        yield ranks
    finally:
        ranks.end()


def _be(  # noqa: PLR0917 - a process takes its arguments by position
    folder: Path,
    backend: Backend,
    rank: int,
    ranks: int,
    addresses: Queue[str],
    security: Security,
    bounds: Bounds,
    work: Work,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)

    def announce(address: str) -> None:
        if rank == 0:
            for _ in range(ranks - 1):
                addresses.put(address)

    if backend == "gloo":
        port = 0 if rank == 0 else int(addresses.get(timeout=PATIENCE_S))
        timeout = timedelta(seconds=bounds.deadline_s)
        store = TCPStore("127.0.0.1", port, ranks, rank == 0, timeout=timeout, wait_for_workers=False)
        announce(str(store.port))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)
        work(rank, ranks, *arguments)
        dist.barrier()
        dist.destroy_process_group()
        return
    with (
        Ledger(folder / f"rank-{rank}.jsonl", f"b.{rank}") as ledger,
        grpc_group(
            Place("test", "b", rank, ranks, generation=3), security, ledger, listen_address="127.0.0.1:0",
            rendezvous_address=lambda: addresses.get(timeout=PATIENCE_S), on_listening=announce, bounds=bounds,
        ),
    ):  # fmt: skip
        work(rank, ranks, *arguments)
