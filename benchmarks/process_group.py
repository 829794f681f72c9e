"""Tensors between two processes of this machine: our "grpc" backend beside gloo, by turns, in one run.

For each size: `latency_s`, half of the median time of a tensor that goes there and back; and
`bytes_per_s`, while a train of tensors goes one way and one comes back at its end. Loopback, no TLS unless --tls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from comms.certificates import TOKEN_FILE, issue
from comms.ledger import Ledger
from comms.process_group import Place, grpc_group
from comms.security import Loopback, Security, Tls

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

Backend = Literal["gloo", "grpc"]
SIZES_BYTES = (64 * 2**10, 2**20, 16 * 2**20)
TRAIN_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Figures:
    """One size on one backend."""

    tensor_bytes: int
    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Row:
    """A row of the result: both backends, medians over the rounds, and the medians of each round's ratio."""

    tensor_bytes: int
    gloo_latency_s: float
    grpc_latency_s: float
    latency_ratio: float
    gloo_bytes_per_s: float
    grpc_bytes_per_s: float
    throughput_ratio: float


def measure(rank: int, tensor_bytes: int, repeats: int) -> Figures:
    """What a size costs between ranks 0 and 1 of the default group."""
    tensor, peer, times = torch.zeros(tensor_bytes // 4), 1 - rank, []
    train = max(4, TRAIN_BYTES // tensor_bytes)
    for _ in range(repeats + 2):
        began_s = time.perf_counter()
        if rank == 0:
            dist.send(tensor, peer)
            dist.recv(tensor, peer)
        else:
            dist.recv(tensor, peer)
            dist.send(tensor, peer)
        times.append((time.perf_counter() - began_s) / 2)
    began_s = time.perf_counter()
    if rank == 0:
        for work in filter(None, [dist.isend(tensor, peer) for _ in range(train)]):  # None: not of the group
            work.wait()
        dist.recv(tensor[:1], peer)
    else:
        for _ in range(train):
            dist.recv(tensor, peer)
        dist.send(tensor[:1], peer)
    train_s = time.perf_counter() - began_s
    return Figures(tensor_bytes, statistics.median(times[2:]), train * tensor_bytes / train_s)


def _be(  # noqa: PLR0917 - a process takes its arguments by position
    rank: int, backend: Backend, security: Security, repeats: int, addresses: Queue[str], said: Queue[Any]
) -> None:
    torch.set_num_threads(1)

    def work() -> None:
        figures = [asdict(measure(rank, size, repeats)) for size in SIZES_BYTES]
        if rank == 0:
            said.put(figures)

    if backend == "gloo":
        port = 0 if rank == 0 else int(addresses.get(timeout=60))
        store = TCPStore("127.0.0.1", port, 2, rank == 0, timeout=timedelta(seconds=60), wait_for_workers=False)
        if rank == 0:
            addresses.put(str(store.port))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        work()
        dist.barrier()
        dist.destroy_process_group()
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(Path(folder) / "ledger.jsonl", f"b.{rank}") as ledger,
        grpc_group(
            Place("benchmark", "b", rank, 2), security, ledger, listen_address="127.0.0.1:0",
            rendezvous_address=lambda: addresses.get(timeout=60),
            on_listening=lambda address: addresses.put(address) if rank == 0 else None,
        ),
    ):  # fmt: skip
        work()


def run(backend: Backend, security: Security, repeats: int) -> list[Figures]:
    """Both ranks of one group, started and ended."""
    made = get_context("forkserver")
    made.set_forkserver_preload(["torch", "comms.process_group"])
    addresses, said = made.Queue(), made.Queue()
    processes = [made.Process(target=_be, args=(r, backend, security, repeats, addresses, said)) for r in (0, 1)]
    for process in processes:
        process.start()
    figures = [Figures(**figures) for figures in said.get(timeout=300)]
    for process in processes:
        process.join(60)
    return figures


def compare(security: Security, rounds: int, repeats: int) -> list[Row]:
    """A row for each size."""
    pairs = [(run("gloo", security, repeats), run("grpc", security, repeats)) for _ in range(rounds)]
    rows = []
    for i, tensor_bytes in enumerate(SIZES_BYTES):
        gloo, grpc = [pair[0][i] for pair in pairs], [pair[1][i] for pair in pairs]
        rows.append(
            Row(
                tensor_bytes,
                statistics.median(figures.latency_s for figures in gloo),
                statistics.median(figures.latency_s for figures in grpc),
                statistics.median(b.latency_s / a.latency_s for a, b in zip(gloo, grpc, strict=True)),
                statistics.median(figures.bytes_per_s for figures in gloo),
                statistics.median(figures.bytes_per_s for figures in grpc),
                statistics.median(b.bytes_per_s / a.bytes_per_s for a, b in zip(gloo, grpc, strict=True)),
            )
        )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.process_group", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--tls", action="store_true", help="encrypt ours; gloo cannot be")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each backend, by turns")
    parser.add_argument("--repeats", type=int, default=20, help="tensors there and back, for each size and start")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        security: Security = Loopback()
        if arguments.tls:
            issue(Path(folder), ["b"], days=1)
            security = Tls("benchmark", "b", Path(folder), Path(folder) / TOKEN_FILE)
        for row in compare(security, arguments.rounds, arguments.repeats):
            print(json.dumps(asdict(row)) if arguments.json else _line(row), flush=True)


def _line(row: Row) -> str:
    return (
        f"{row.tensor_bytes / 2**10:6.0f} KiB  latency: gloo {1e3 * row.gloo_latency_s:7.2f} ms, "
        f"grpc {1e3 * row.grpc_latency_s:7.2f} ms ({row.latency_ratio:.1f}x)   throughput: "
        f"gloo {row.gloo_bytes_per_s / 1e6:6.0f} MB/s, grpc {row.grpc_bytes_per_s / 1e6:6.0f} MB/s "
        f"({row.throughput_ratio:.2f}x)"
    )


if __name__ == "__main__":
    main()
