"""How the processes of one replica become its crew.

one process              nothing to do
several on one machine   torchrun has started them, and joins them with gloo
stages of a pipeline     the coordinator introduces them; they are joined by our channels ("grpc"), or by gloo
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.rendezvous import rendezvous

from comms.channel import own_host, require_permission
from comms.ledger import Direction, Ledger
from comms.meetings import Meeting, meet
from comms.place import Bounds, Place
from comms.process_group import grpc_group
from comms.security import Security
from dist_train.config import Config, ConfigError, ReplicaConfig
from dist_train.crew import Crew, GroupCrew, Solo

Enlist = Callable[[Ledger], AbstractContextManager[Crew]]
"""Joins this process to the others of its replica, for as long as it is entered; what moves goes into the ledger."""


def stage_of(replica: ReplicaConfig, told: str | None) -> str | None:
    """The name of the stage that this process was told to be: by that name, or by its place, counted from 0."""
    if told is not None and told not in replica.pipeline and told.isdecimal() and int(told) < len(replica.pipeline):
        return replica.pipeline[int(told)]
    return told


def rank_of(replica: ReplicaConfig, stage: str | None) -> int:
    """This process's rank in `replica`: its stage's place, or what torchrun says. ConfigError for no such stage."""
    if not replica.pipeline:
        return int(os.environ.get("RANK", "0")) if replica.ranks > 1 else 0
    if stage not in replica.pipeline:
        raise ConfigError(f"replica {replica.id} has stages {', '.join(replica.pipeline)}: say --stage and one of them")
    return replica.pipeline.index(stage)


def enlist(config: Config, replica: ReplicaConfig, rank: int, coordinator_address: str, security: Security) -> Enlist:
    """The way of `replica`. ConfigError when as many processes were started as it has not."""
    patience_s, own = config.exchange.outage_deadline_s, config.pipeline
    if replica.pipeline:
        place = Place(config.run.name, replica.id, rank, len(replica.pipeline))
        bounds = Bounds(own.transfer_deadline_s, own.outage_deadline_s, own.buffer_bytes)
        stages = _Stages(place, coordinator_address, security, patience_s, bounds)
        return stages.over_grpc if replica.channel == "grpc" else stages.over_gloo
    if replica.ranks == 1:
        return _alone
    if (started := os.environ.get("WORLD_SIZE")) != str(replica.ranks):
        raise ConfigError(
            f"replica {replica.id} has ranks = {replica.ranks}, and {started or 1} were started: start them with "
            f"torchrun --nproc-per-node {replica.ranks} (dist-train launch does)"
        )
    return partial(_started_by_torchrun, replica, patience_s)


@contextmanager
def _alone(_ledger: Ledger) -> Iterator[Crew]:
    yield Solo()


@contextmanager
def _started_by_torchrun(replica: ReplicaConfig, patience_s: float, ledger: Ledger) -> Iterator[Crew]:
    patience = timedelta(seconds=patience_s)
    store, rank, ranks = next(rendezvous("env://", timeout=patience))
    # torchrun keeps one store for all its attempts. Without a prefix, ranks that are started again read addresses of
    # those that died: both listen, neither connects, and gloo waits far beyond its timeout.
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("gloo", store=attempt, rank=rank, world_size=ranks, timeout=patience)
    with _gloo_crew(replica.id, ledger) as crew:
        yield crew


@dataclass(frozen=True)
class _Stages:
    """One stage of a pipeline, on its way to the others."""

    place: Place
    coordinator_address: str
    security: Security
    patience_s: float
    """For the coordinator to introduce them."""
    bounds: Bounds
    """For each other, once they have met."""

    @contextmanager
    def over_grpc(self, ledger: Ledger) -> Iterator[Crew]:
        """Over our own channels: encrypted, counted, bounded."""
        met = list[Meeting]()
        with grpc_group(
            self.place,
            self.security,
            ledger,
            listen_address=f"{self._host}:0",
            on_listening=lambda address: met.append(self._meet(address)),
            rendezvous_address=lambda: met[0].addresses[0],
            bounds=self.bounds,
        ):
            yield GroupCrew(_everybody())

    @contextmanager
    def over_gloo(self, ledger: Ledger) -> Iterator[Crew]:
        """Over gloo: plain text, where that is allowed."""
        host, rank, ranks = self._host, self.place.rank, self.place.ranks
        patience = timedelta(seconds=self.bounds.deadline_s)
        require_permission(f"{host}:0", self.security)
        if rank == 0:
            store = TCPStore(host, 0, ranks, True, patience, wait_for_workers=False)
            self._meet(f"{host}:{store.port}")
        else:
            meeting_host, _, port = self._meet(f"{host}:0").addresses[0].rpartition(":")
            store = TCPStore(meeting_host, int(port), ranks, False, patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=patience)
        with _gloo_crew(self.place.replica, ledger) as crew:
            yield crew

    def _meet(self, address: str) -> Meeting:
        return meet(
            self.coordinator_address,
            self.security,
            replica=self.place.replica,
            rank=self.place.rank,
            ranks=self.place.ranks,
            address=address,
            patience_s=self.patience_s,
        )

    @property
    def _host(self) -> str:
        return own_host(self.coordinator_address)


@contextmanager
def _gloo_crew(replica_id: str, ledger: Ledger) -> Iterator[Crew]:
    try:
        crew = GroupCrew(_everybody())
        crew.meter(partial(_count, ledger, replica_id))
        yield crew
    finally:
        dist.destroy_process_group()


def _everybody() -> dist.ProcessGroup:
    return dist.distributed_c10d._get_default_group()


def _count(ledger: Ledger, replica_id: str, direction: Direction, rank: int, num_bytes: int) -> None:
    peer = f"{replica_id}/{rank}"
    ledger.tally(peer=peer, direction=direction, kind="intra_replica", num_bytes=num_bytes, seconds=0.0)
