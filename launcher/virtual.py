"""`dist-train simulate --virtual`: replicas that share this process and a simulated clock."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from dist_train.config import Config, ConfigError, parse
from dist_train.links import members_of
from dist_train.report.links import are_seconds_simulated
from dist_train.report.metrics import MetricsTail
from dist_train.report.quantities import seconds_text
from dist_train.run_directory import RunDirectory
from launcher.lock import hold_lock
from launcher.members import THREADS_VARIABLE, processes_beside, threads_of
from launcher.progress import Progress
from launcher.simulate import announcement, reached
from launcher.standing import committed_rounds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dist_train.virtual.pace import Paces
    from launcher.view import View

MOST_VIRTUAL = 1000
"""Each has an optimizer's state, and writes a ledger row for every payload of every other."""


def with_replicas(config: Config, number: int | None) -> Config:
    """`config` with so many replicas: those that it names, in order, and then more like the last of them."""
    if number is None:
        return config
    if not 1 <= number <= MOST_VIRTUAL:
        raise ConfigError(f"--replicas {number}: 1 to {MOST_VIRTUAL} can be virtual; --what-if knows more")
    document: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    named = document["replica"][:number]
    taken = {replica["id"] for replica in document["replica"]}
    names = (name for i in range(2 * number + 1) if (name := f"v{i:03}") not in taken)
    document["replica"] = named + [_another(named[-1], next(names)) for _ in range(number - len(named))]
    exchange = document["exchange"]
    exchange["min_replicas"] = min(exchange["min_replicas"], number)
    if exchange["most_replicas"]:
        exchange["most_replicas"] = max(exchange["most_replicas"], number)
    return parse(document, origin="--replicas")


def _another(section: dict[str, Any], name: str) -> dict[str, Any]:
    """The same replica under another name; its stages have names of their own."""
    stages = [f"{name}-{number}" for number in range(len(section.get("pipeline", ())))]
    return {**section, "id": name, "pipeline": stages}


def paces_of(config: Config, compute_s: Sequence[str], tokens_per_s: Sequence[str], like: Path | None) -> Paces | None:
    """What the options say of speeds; None: they are measured. ConfigError when they say two things."""
    from dist_train.virtual.pace import measured_paces, told_paces

    if like is None:
        return told_paces(config, compute_s, tokens_per_s)
    if compute_s or tokens_per_s:
        raise ConfigError("--like takes all speeds from another run: leave out --compute-s and --tokens-per-s")
    return measured_paces(RunDirectory(like))


def simulate_virtual(config: Config, directory: RunDirectory, view: View, paces: Paces | None) -> int:
    """Makes the run of `config` with virtual replicas; the exit code. An earlier virtual run there is replaced."""
    from comms.link_plan import read_simulation
    from dist_train.virtual.run import check, clear, run_virtual  # torch

    check(config)
    with hold_lock(directory.path):
        if committed_rounds(directory) or directory.checkpoints.exists():
            if not are_seconds_simulated(directory):
                raise ConfigError(
                    f"{directory.path} keeps a run of real processes: give the virtual one another run.directory"
                )
            clear(directory)
        _share_cores(config)
        tail, rounds = MetricsTail(directory.metrics), []
        names = tuple(replica.id for replica in config.replica)

        def show(_open_round: int = 0) -> None:
            for row in tail.new_rows():
                rounds.append(row)
                view.committed(Progress(config.run.name, config.rounds, names, tuple(rounds[-64:])), row)

        started_s = time.monotonic()
        view.say(f"{len(names)} virtual replicas in one process; seconds are simulated")
        run_virtual(config, directory, paces, show)
        show()
        simulation = read_simulation(directory.simulation)
        for said in announcement(simulation, members_of(config)):
            view.say(said)
        for said in reached(directory, simulation.asked):
            view.say(said)
        last = rounds[-1] if rounds else None
        simulated_s = last.committed_at_s if last is not None else None
        view.say(
            f"{config.run.name} is complete: {len(rounds)} rounds, {seconds_text(simulated_s)} simulated, "
            f"in {seconds_text(time.monotonic() - started_s)}"
        )
        view.say(f"next: dist-train report {directory.path}   |   dist-train simulate {directory.path} --what-if")
    return 0


def _share_cores(config: Config) -> None:
    """As many threads as a launch gives each replica: sums in other orders have other bits."""
    import torch

    if THREADS_VARIABLE not in os.environ:
        torch.set_num_threads(threads_of(processes_beside(config)))
