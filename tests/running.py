"""Whole runs for tests: a real coordinator and real replicas over real gRPC, all in threads of this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from comms.ledger import Ledger
from dist_train.checkpoint import CheckpointInfo, newest_outer
from dist_train.config import Config, parse
from dist_train.coordination import run_coordinator
from dist_train.crew import Crew, GroupCrew
from dist_train.replica import run_replica
from dist_train.run_directory import RunDirectory

PATIENCE_S = 100.0


def tiny(
    directory: Path,
    source: str,
    *,
    replicas: int = 2,
    ranks: Mapping[str, int] | None = None,
    **sections: dict[str, Any],
) -> Config:
    """The config of a run that takes a second or two; `sections` add to it or replace single keys.

    `ranks` are those of the replicas that have several.
    """
    document: dict[str, Any] = {
        "run": {"directory": str(directory), "seed": 7},
        "model": {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64},
        "data": {"source": source, "sequence_tokens": 64, "validation_tokens": 512, "validation_fraction": 0.1},
        "inner": {"steps": 3, "batch_tokens": 256, "lr": 3e-3},
        "outer": {"rounds": 3},
        "sparseloco": {"chunk": 256, "k": 16},
        "exchange": {"min_replicas": replicas},
        "sequence": {"planner": "off"},
        "replica": [{"id": name, "ranks": (ranks or {}).get(name, 1)} for name in "abcdefgh"[:replicas]],
    }
    for name, section in sections.items():
        document[name] = document.get(name, {}) | section
    return parse(document)


def write_corpus(folder: Path, documents: int = 120) -> str:
    """Text files of many lengths, none of them empty; returns their data.source."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        words = (f"word{(i * 31 + j * j) % 97} " for j in range(1 + (i * 17) % 60))
        (folder / f"{i:03}.txt").write_text("".join(words), encoding="utf-8")
    return f"text:{folder}/*.txt"


def run(config: Config, beside: Callable[[str, threading.Event], None] | None = None) -> RunDirectory:
    """Runs `config` to its end and returns its directory; an error of any member is raised.

    `beside` gets the coordinator's address before the replicas do, and an event that is set when the run is over.
    """
    directory = RunDirectory(Path(config.run.directory))
    directory.path.mkdir(parents=True, exist_ok=True)
    errors = list[BaseException]()
    listening = threading.Event()
    address = list[str]()

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def guarded_work() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
                errors.append(error)
                listening.set()

        return guarded_work

    def on_listening(bound: str) -> None:
        address.append(bound)
        listening.set()

    threads = [threading.Thread(target=guarded(lambda: run_coordinator(config, directory, on_listening)), daemon=True)]
    threads[0].start()
    assert listening.wait(PATIENCE_S), "the coordinator does not listen"
    over = threading.Event()
    visitors = list[threading.Thread]()
    if beside is not None and address:
        visit = guarded(partial(beside, address[0], over))
        visitors.append(threading.Thread(target=visit, daemon=True))
        visitors[0].start()
    for replica in config.replica if address else ():
        meeting_point = directory.path / f"{replica.id}.store"
        for rank in range(replica.ranks):
            joined = partial(_joined, meeting_point, rank, replica.ranks) if replica.ranks > 1 else None
            work = guarded(partial(run_replica, config, directory, replica.id, address[0], rank=rank, join_crew=joined))
            threads.append(threading.Thread(target=work, daemon=True, name=replica.id))
            threads[-1].start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a member hangs"
    over.set()
    for thread in visitors:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a visitor hangs"
    if errors:
        raise errors[0]
    return directory


@contextmanager
def _joined(meeting_point: Path, rank: int, ranks: int, _ledger: Ledger) -> Iterator[Crew]:
    yield GroupCrew(gloo_group(meeting_point, rank, ranks))


def gloo_group(meeting_point: Path, rank: int, ranks: int) -> dist.ProcessGroup:
    """A group of ranks that may be threads of one process; `meeting_point` is a file that none has used."""
    store = FileStore(str(meeting_point), ranks)
    group = dist.ProcessGroup(store, rank, ranks)
    gloo = dist.ProcessGroupGloo(store, rank, ranks, timedelta(seconds=PATIENCE_S))
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
    return group


def metrics(directory: RunDirectory) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, the last one of each round, in order."""
    rows = [json.loads(line) for line in directory.metrics.read_text(encoding="utf-8").splitlines()]
    return [row for _, row in sorted({row["round"]: row for row in rows}.items())]


def theta(directory: RunDirectory) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """The newest outer parameters."""
    return newest_outer(directory.checkpoints)
