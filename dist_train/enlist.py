"""How the processes of one replica become its crew.

one process              nothing to do
several on one machine   torchrun has started them, and joins them with gloo
stages of a pipeline     the coordinator introduces them; they are joined by our channels ("grpc"), or by gloo
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial

import torch.distributed as dist
from comms.place import Bounds, Place
from comms.process_group import grpc_group

from comms.channel import own_host, require_permission
from comms.ledger import Direction, Ledger
from comms.meetings import Meeting, meet
from comms.security import Security
from dist_train.config import Config, ConfigError, ReplicaConfig
from dist_train.crew import Crew, GroupCrew, Solo

Enlist = Callable[[Ledger], AbstractContextManager[Crew]]
"""Joins this process to the others of its replica, for as long as it is entered; what moves goes into the ledger."""


def enlist(config: Config, replica: ReplicaConfig, rank: int, coordinator_address: str, security: Security) -> Enlist:
    """The way of `replica`. ConfigError when as many processes were started as it has not."""
    if replica.pipeline:
        introduced = partial(
            meet, coordinator_address, security, replica=replica.id, rank=rank, ranks=len(replica.pipeline),
            patience_s=config.exchange.outage_deadline_s,
        )  # fmt: skip
        way = _over_grpc if replica.channel == "grpc" else _over_gloo
        return partial(way, config, replica, rank, own_host(coordinator_address), introduced, security)
    if replica.ranks == 1:
        return _alone
    if (started := os.environ.get("WORLD_SIZE")) != str(replica.ranks):
        raise ConfigError(
            f"replica {replica.id} has ranks = {replica.ranks}, and {started or 1} were started: start them with "
            f"torchrun --nproc-per-node {replica.ranks} (dist-train launch does)"
        )
    return partial(_started_by_torchrun, config, replica)


@contextmanager
def _alone(_ledger: Ledger) -> Iterator[Crew]:
    yield Solo()


@contextmanager
def _started_by_torchrun(config: Config, replica: ReplicaConfig, ledger: Ledger) -> Iterator[Crew]:
    dist.init_process_group("gloo", timeout=timedelta(seconds=config.exchange.outage_deadline_s))
    with _gloo_crew(replica, ledger) as crew:
        yield crew


@contextmanager
def _over_gloo(
    config: Config,
    replica: ReplicaConfig,
    rank: int,
    host: str,
    introduced: Callable[..., Meeting],
    security: Security,
    ledger: Ledger,
) -> Iterator[Crew]:
    require_permission(f"{host}:0", security)
    ranks, patience = len(replica.pipeline), timedelta(seconds=config.exchange.outage_deadline_s)
    if rank == 0:
        store = dist.TCPStore(host, 0, ranks, is_master=True, timeout=patience, wait_for_workers=False)
        introduced(address=f"{host}:{store.port}")
    else:
        meeting_host, _, port = introduced(address=f"{host}:0").addresses[0].rpartition(":")
        store = dist.TCPStore(meeting_host, int(port), ranks, is_master=False, timeout=patience)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=patience)
    with _gloo_crew(replica, ledger) as crew:
        yield crew


@contextmanager
def _gloo_crew(replica: ReplicaConfig, ledger: Ledger) -> Iterator[Crew]:
    try:
        crew = GroupCrew(_everybody())
        crew.meter(partial(_tally, ledger, replica.id))
        yield crew
    finally:
        dist.destroy_process_group()


@contextmanager
def _over_grpc(
    config: Config,
    replica: ReplicaConfig,
    rank: int,
    host: str,
    introduced: Callable[..., Meeting],
    security: Security,
    ledger: Ledger,
) -> Iterator[Crew]:
    found = list[Meeting]()
    place = Place(replica.id, rank, len(replica.pipeline))
    with grpc_group(
        place,
        security,
        ledger,
        listen_address=f"{host}:0",
        on_listening=lambda address: found.append(introduced(address=address)),
        rendezvous_address=lambda: found[0].addresses[0],
        bounds=Bounds(deadline_s=config.exchange.outage_deadline_s),
    ):
        yield GroupCrew(_everybody())


def _everybody() -> dist.ProcessGroup:
    return dist.distributed_c10d._get_default_group()


def _tally(ledger: Ledger, replica_id: str, direction: Direction, rank: int, num_bytes: int) -> None:
    ledger.tally(peer=f"{replica_id}.{rank}", direction=direction, kind="intra_replica", num_bytes=num_bytes)
