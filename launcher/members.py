"""The processes of a run on this machine: what is started for each member, and with which environment."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from dist_train.config import ConfigError
from launcher.supervisor import Command

if TYPE_CHECKING:
    from dist_train.config import Config, ReplicaConfig
    from dist_train.run_directory import RunDirectory

COORDINATOR = "coordinator"
THREADS_VARIABLE = "OMP_NUM_THREADS"
# How often torchrun starts all ranks of a replica anew after one of them has died.
RANK_RESTARTS = 3


def replica_ids(config: Config) -> tuple[str, ...]:
    """The replicas that the config names; ConfigError when one has the coordinator's name."""
    ids = tuple(replica.id for replica in config.replica)
    if COORDINATOR in ids:
        raise ConfigError(f'replica.id = "{COORDINATOR}" is the coordinator\'s own name; choose another')
    return ids


def coordinator_command(config: Config, directory: RunDirectory, kept_descriptors: tuple[int, ...] = ()) -> Command:
    """Starts the coordinator, which announces its address."""
    return Command(
        member=COORDINATOR,
        arguments=(*launcher(), "coordinate", str(directory.path), "--lifeline"),
        log=directory.log(COORDINATOR),
        environment=_environment(processes_beside(config)),
        announces=True,
        kept_descriptors=kept_descriptors,
    )


def replica_commands(
    config: Config,
    directory: RunDirectory,
    replica: str,
    address: str,
    kept_descriptors: tuple[int, ...] = (),
    *,
    beside: int | None = None,
) -> tuple[Command, ...]:
    """Starts one replica, which dials the coordinator at `address`: a process for each stage of a pipeline, else one.

    Several ranks on one machine are started by torchrun. `beside`: the processes that share a machine; all by default.
    """
    section = section_of(config, replica)
    identity = ("--id", replica, "--coordinator", address)
    return tuple(
        Command(
            member=process,
            arguments=(
                *launcher(section.ranks),
                *("replica", str(directory.path), *identity),
                *(("--stage", process) if section.pipeline else ()),
                "--lifeline",
            ),
            log=directory.log(process),
            environment=_environment(beside or processes_beside(config)),
            kept_descriptors=kept_descriptors,
        )
        for process in section.processes
    )


def section_of(config: Config, replica: str) -> ReplicaConfig:
    """The section of a replica that the config names."""
    return next(section for section in config.replica if section.id == replica)


def launcher(ranks: int = 1, python: str = sys.executable) -> tuple[str, ...]:
    """How a command of ours is run, once or by torchrun in each of several ranks."""
    if ranks == 1:
        return (python, "-m", "launcher")
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    return (python, *torchrun, f"--max-restarts={RANK_RESTARTS}", "-m", "launcher")


def processes_beside(config: Config, machine: str | None = None) -> int:
    """How many processes train on one machine: all, or those of one that the config names as a host."""
    return sum(
        replica.ranks * (len(replica.machines) if machine is None else replica.machines.count(machine))
        for replica in config.replica
    )


def _environment(processes: int) -> dict[str, str]:
    """Unbuffered logs; and the cores shared out, since each process would otherwise take them all."""
    environment = {"PYTHONUNBUFFERED": "1"}
    if THREADS_VARIABLE not in os.environ:
        environment[THREADS_VARIABLE] = str(threads_of(processes))
    return environment


def threads_of(processes: int) -> int:
    """Threads of each of so many processes: this machine's cores, shared out."""
    return max(1, _usable_cores() // max(1, processes))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
