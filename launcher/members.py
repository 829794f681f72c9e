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
        arguments=(*_launcher(), "coordinate", str(directory.path), "--lifeline"),
        log=directory.log(COORDINATOR),
        environment=_environment(config),
        announces=True,
        kept_descriptors=kept_descriptors,
    )


def replica_commands(
    config: Config, directory: RunDirectory, replica: str, address: str, kept_descriptors: tuple[int, ...] = ()
) -> tuple[Command, ...]:
    """Starts one replica, which dials the coordinator at `address`: a process for each stage of a pipeline, else one.

    Several ranks on one machine are started by torchrun.
    """
    section = _section(config, replica)
    identity = ("--id", replica, "--coordinator", address)
    return tuple(
        Command(
            member=process,
            arguments=(
                *_launcher(section.ranks),
                *("replica", str(directory.path), *identity),
                *(("--stage", process) if section.pipeline else ()),
                "--lifeline",
            ),
            log=directory.log(process),
            environment=_environment(config),
            kept_descriptors=kept_descriptors,
        )
        for process in processes_of(section)
    )


def processes_of(replica: ReplicaConfig) -> tuple[str, ...]:
    """The names of a replica's processes: those of its stages, or its own."""
    return replica.pipeline or (replica.id,)


def _section(config: Config, replica: str) -> ReplicaConfig:
    return next(section for section in config.replica if section.id == replica)


def commands(config: Config, directory: RunDirectory) -> tuple[Command, ...]:
    """All that a launch would start; the coordinator's address is known only then."""
    replicas = (replica_commands(config, directory, replica, "HOST:PORT") for replica in replica_ids(config))
    return (coordinator_command(config, directory), *(command for several in replicas for command in several))


def _launcher(ranks: int = 1) -> tuple[str, ...]:
    if ranks == 1:
        return (sys.executable, "-m", "launcher")
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    return (sys.executable, *torchrun, f"--max-restarts={RANK_RESTARTS}", "-m", "launcher")


def _environment(config: Config) -> dict[str, str]:
    """Unbuffered logs; and the cores shared out, since each process would otherwise take them all."""
    environment = {"PYTHONUNBUFFERED": "1"}
    if THREADS_VARIABLE not in os.environ:
        environment[THREADS_VARIABLE] = str(
            max(1, _usable_cores() // sum(r.ranks * len(processes_of(r)) for r in config.replica))
        )
    return environment


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
