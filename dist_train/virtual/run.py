"""A whole run of virtual replicas, in this process: the coordinator, the members, the links, the run directory.

Replicas whose parameters all begin a round at theta (`outer.remembers`) share one model: whoever trains first makes it
theta, and nobody else comes in between before what it found is encoded, because an actor gives way only where it waits.
What is a replica's own is its theta, its error feedback and its inner optimizer's state. Under ddp each has a model,
and so has every pipeline: its boundaries are part of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from comms.agreement import COORDINATOR, CatchUp, CommittedRound, Finish, RoundPlan
from comms.errors import RunFailed
from comms.ledger import Ledger
from comms.link_plan import Simulation
from comms.store import PayloadStore
from comms.virtual_coordinator import VirtualCoordinator
from comms.virtual_network import VirtualNetwork
from comms.virtual_time import Actor
from comms.virtual_transfers import PayloadPool
from comms.virtual_transport import VirtualSettings, VirtualTransport
from compression.registry import prepare
from dist_train.checkpoint import Checkpoints
from dist_train.config import Config, ConfigError, ReplicaConfig
from dist_train.coordination import rules_of
from dist_train.data.corpus import open_corpus
from dist_train.data.stream import Stream
from dist_train.engine import LocalEngine
from dist_train.inner import InnerOptimizer
from dist_train.links import link_plan, members_of
from dist_train.model import build_model, model_vocab_size
from dist_train.outer import LocalStart, outer_method
from dist_train.pipeline.rehearsal import InTurn, Rehearsal
from dist_train.pipeline.terms import check_fits, terms_of
from dist_train.replica import facts_of, introduction, replica_of, snapshot_of
from dist_train.round import Replica, follow, take_part
from dist_train.run_directory import RunDirectory, write_atomically
from dist_train.virtual.clock import Decoded, PacedEngine, RememberingCodec, VirtualClock
from dist_train.virtual.machines import Ranks, Stages, shares_of_stages, together
from dist_train.virtual.schedule import Schedule

if TYPE_CHECKING:
    from dist_train.virtual.pace import Paces

_FIRST_PORT = 50_000


@dataclass(frozen=True)
class _Shared:
    """What virtual replicas have in common."""

    config: Config
    directory: RunDirectory
    stream: Stream
    model: nn.Module | None
    """Of all of them; None: each has its own."""
    network: VirtualNetwork
    coordinator: VirtualCoordinator
    pool: PayloadPool
    decoded: Decoded
    paces: Paces | None


def run_virtual(
    config: Config, directory: RunDirectory, paces: Paces | None = None, on_round: Callable[[int], None] | None = None
) -> None:
    """Makes the run of `config` in `directory`, which holds none. CommsError or ConfigError when that can't be.

    `paces` say how fast replicas work; without them it is measured, each replica having this machine to itself.
    `on_round` is called when a round is opened.
    """
    check(config)
    directory.path.mkdir(parents=True, exist_ok=True)
    owned = {section.id: _owned(config, section) for section in config.replica if section.pipeline}
    plan = together(link_plan(config), owned)
    write_atomically(directory.config, config.to_toml().encode())
    write_atomically(directory.simulation, Simulation(plan, "virtual", "virtual").to_json())
    corpus = open_corpus(
        config.data, vocab_size=model_vocab_size(config.model), seed=config.run.seed, directory=directory.corpus
    )
    with ExitStack() as stack:
        ledgers = dict[str, Ledger]()
        speakers = (COORDINATOR, *(section.id for section in config.replica))
        network = VirtualNetwork(tuple(dict.fromkeys((*speakers, *members_of(config)))), plan, ledgers)
        for member in speakers:
            ledger = Ledger(directory.ledger(member), member, clock=lambda: network.world.now_s)
            ledgers[member] = stack.enter_context(ledger)
        schedule = Schedule(config, network, owned, on_round)
        coordinator = VirtualCoordinator(network, rules_of(config), directory.metrics, schedule.opened)
        shares = config.outer.method != "ddp"
        shared = _Shared(
            config, directory, Stream(corpus, config.run.seed),
            build_model(config.model, config.run.seed) if shares else None,
            network, coordinator, PayloadPool(), Decoded(), paces,
        )  # fmt: skip
        _add_all(shared)
        network.world.run()
        if coordinator.failure:
            raise RunFailed(coordinator.failure)


def check(config: Config) -> None:
    """ConfigError where a virtual member can't do what the config wants."""
    for replica in config.replica:
        if replica.pipeline:
            check_fits(config, replica)
            if replica.basis == "fitted":
                raise ConfigError(
                    f'replica {replica.id} has basis = "fitted", and a virtual pipeline keeps the seeded one: say '
                    '"seeded", or simulate with real processes (without --virtual)'
                )
    if any(change.partition for change in config.simulate.change):
        raise ConfigError("virtual members don't lose each other: simulate the partition with real processes")


def _add_all(shared: _Shared) -> None:
    """All replicas are made before the first of them begins: each copies its theta from the model."""
    replicas = dict[str, tuple[Replica, VirtualClock]]()

    def live(actor: Actor) -> None:
        replica, clock = replicas[actor.name]
        _live(shared, replica, clock)

    is_measured = shared.paces is None
    for section in shared.config.replica:
        actor = shared.network.world.add(section.id, live, is_measured=is_measured)
        clock = VirtualClock(actor)
        replicas[section.id] = _replica(shared, actor, clock), clock
    codec = next(iter(replicas.values()))[0].outer.codec
    facts = facts_of(shared.config, shared.stream.corpus, codec)
    write_atomically(shared.directory.facts, json.dumps(facts, indent=1).encode())
    prepare(codec)


def _replica(shared: _Shared, actor: Actor, clock: VirtualClock) -> Replica:
    config, exchange = shared.config, shared.config.exchange
    section = replica_of(config, actor.name)
    inner, start = _pipeline(shared, section, clock) if section.pipeline else (_ranks(shared, section, clock), None)
    outer = outer_method(config, inner.model, inner, start=start)
    outer.codec = RememberingCodec(outer.codec, shared.decoded, clock)
    settings = VirtualSettings(
        exchange.route, exchange.heartbeat_s, exchange.fetch_deadline_s, exchange.outage_deadline_s, shared.pool
    )
    store = PayloadStore(shared.directory.payloads(actor.name))
    transport = VirtualTransport(actor, shared.network, shared.coordinator, settings, store)
    return Replica(actor.name, config, shared.stream, inner, outer, transport, 0, outer.digest(), clock)


def _ranks(shared: _Shared, section: ReplicaConfig, clock: VirtualClock) -> InnerOptimizer:
    """Of a replica of one rank, or of several, which are computed as one."""
    config = shared.config
    model = shared.model or build_model(config.model, config.run.seed)
    engine = PacedEngine(LocalEngine(model, config.inner.micro_batch_tokens), clock, Ranks(section.ranks))
    return InnerOptimizer(model, config.inner, config.total_steps, engine)


def _pipeline(shared: _Shared, section: ReplicaConfig, clock: VirtualClock) -> tuple[InnerOptimizer, LocalStart | None]:
    """Of a pipeline, and where its inner steps begin."""
    config, terms = shared.config, terms_of(shared.config, section)
    model = build_model(config.model, config.run.seed)
    engine = InTurn(model, terms)
    stages = Stages(section, terms, shares_of_stages(config, terms, embedding=False), engine, shared.network)
    inner = Rehearsal(model, config.inner, config.total_steps, terms, PacedEngine(engine, clock, stages))
    return inner, inner.bond


def _owned(config: Config, section: ReplicaConfig) -> dict[str, float]:
    return dict(zip(section.pipeline, shares_of_stages(config, terms_of(config, section), embedding=True), strict=True))


def _live(shared: _Shared, replica: Replica, clock: VirtualClock) -> None:
    """What `dist_train.replica` does, without what can't happen here."""
    number = [section.id for section in shared.config.replica].index(replica.id)
    address = f"127.0.0.1:{_FIRST_PORT + number}" if shared.config.exchange.route == "direct" else ""
    replica.transport.join(introduction(replica, address))
    while True:
        before = replica.round
        match replica.transport.receive():
            case RoundPlan(round=round_number) as plan if round_number == replica.round + 1:
                _begin(shared, replica, clock)
                take_part(replica, plan)
            case CommittedRound(round=round_number) as committed if round_number == replica.round + 1:
                _follow(shared, replica, clock, [committed])
            case CatchUp():
                _follow(shared, replica, clock, replica.transport.history(replica.round))
            case Finish(failure):
                if failure:
                    raise RunFailed(failure)
                break
            case _:
                pass  # of a round that is behind us
        if replica.round > before:
            shared.network.ledger(replica.id).flush(replica.round)
            _keep(shared, replica)


def _follow(shared: _Shared, replica: Replica, clock: VirtualClock, rounds: list[CommittedRound]) -> None:
    for committed in rounds:
        _begin(shared, replica, clock)
        follow(replica, committed)


def _begin(shared: _Shared, replica: Replica, clock: VirtualClock) -> None:
    """The model, where another replica has been at work, becomes this one's."""
    if shared.paces is not None:
        clock.pace = shared.paces(replica.id, replica.round + 1)
    if replica.inner.model is shared.model:
        replica.outer.restart_from_theta()


def _keep(shared: _Shared, replica: Replica) -> None:
    """Writes the last round's checkpoint, once: for `export`."""
    if replica.round == shared.config.rounds and replica.id == shared.config.replica[0].id:
        Checkpoints(shared.directory.checkpoints, replica.id, keep=1).write(snapshot_of(replica))


def clear(directory: RunDirectory) -> None:
    """Deletes what an earlier virtual run has left."""
    directory.forget_progress()
    for folder in (directory.checkpoints, directory.path / "payloads"):
        shutil.rmtree(folder, ignore_errors=True)
