"""A run whose replicas are pipelines, each stage a process: forked from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dist_train.config import Config
from dist_train.run_directory import RunDirectory

PATIENCE_S = 100.0
made = multiprocessing.get_context("forkserver")
made.set_forkserver_preload(["dist_train.replica", "dist_train.coordination"])


@dataclass
class Members:
    """The coordinator and all stages of a run, none of them started yet."""

    config: Config
    started: list[BaseProcess] = field(default_factory=list)

    def start(self, failpoints: str = "") -> None:
        """Starts everybody; the last stage of the last replica fails at `failpoints`."""
        addresses = made.Queue()
        self._start(_coordinate, addresses)
        address = addresses.get(timeout=PATIENCE_S)
        seats = [(r.id, rank) for r in self.config.replica for rank in range(max(1, len(r.pipeline)))]
        for seat in seats:
            self._start(_take_part, seat, address, failpoints if seat == seats[-1] else "")

    def _start(self, work: Any, *arguments: Any) -> None:
        directory = RunDirectory(Path(self.config.run.directory))
        directory.path.mkdir(parents=True, exist_ok=True)
        process = made.Process(target=work, args=(self.config, directory, *arguments))
        process.start()
        self.started.append(process)

    def finish(self) -> None:
        """Waits until all have ended well."""
        for process in self.started:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in self.started] == [0] * len(self.started)
        self.started.clear()

    def kill_with_the_last(self) -> None:
        """Waits until the last stage has been killed, then kills all others at once."""
        self.started[-1].join(PATIENCE_S)
        assert self.started[-1].exitcode == -9
        self.kill()

    def kill(self) -> None:
        """SIGKILL to everybody."""
        for process in self.started:
            process.kill()
        for process in self.started:
            process.join(PATIENCE_S)
        self.started.clear()


@contextmanager
def members(config: Config) -> Iterator[Members]:
    """None is left behind."""
    those = Members(config)
    try:
        yield those
    finally:
        those.kill()


def run_stages(config: Config) -> RunDirectory:
    """Runs to the end."""
    with members(config) as those:
        those.start()
        those.finish()
    return RunDirectory(Path(config.run.directory))


def _coordinate(config: Config, directory: RunDirectory, addresses: Any) -> None:
    from dist_train.coordination import run_coordinator  # noqa: PLC0415

    run_coordinator(config, directory, addresses.put)


def _take_part(config: Config, directory: RunDirectory, seat: tuple[str, int], address: str, fails: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # noqa: PLC0415

    from comms import failpoints  # noqa: PLC0415
    from dist_train.replica import run_replica  # noqa: PLC0415

    torch.set_num_threads(1)
    failpoints._armed.extend(failpoints.parse(fails))
    run_replica(config, directory, seat[0], address, rank=seat[1])
