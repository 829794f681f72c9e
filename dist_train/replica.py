"""A replica's life: it builds model and data, resumes where it stopped, joins the run, and takes part to its end."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from comms.agreement import COORDINATOR, CatchUp, CommittedRound, Finish, Join, Leave, Proposal, Refusal, RoundPlan
from comms.crew import CrewTransport
from comms.errors import Refused, RunFailed
from comms.grpc_transport import GrpcTransport
from comms.ledger import Ledger
from comms.store import PayloadStore
from comms.transport_settings import TransportSettings
from compression.codec import Codec
from compression.registry import prepare
from dist_train.catch_up import catch_up
from dist_train.checkpoint import CheckpointError, CheckpointInfo, Checkpoints, Snapshot, shared_file_bytes
from dist_train.config import Config, ConfigError, ReplicaConfig
from dist_train.data.corpus import Corpus, open_corpus
from dist_train.data.stream import Stream
from dist_train.discovery import LOOK_S, discovery_of
from dist_train.enlist import Enlist, enlist
from dist_train.model import fragment_shapes, model_vocab_size
from dist_train.outer import outer_method
from dist_train.pipeline.subspace import EMBEDDING
from dist_train.round import Damaged, Replica, follow, take_part
from dist_train.run_directory import RunDirectory, alone_in, write_atomically
from dist_train.seat import num_parameters, seat_of
from dist_train.security import security_of
from dist_train.watch.watching import watching_replica

_log = logging.getLogger(__name__)


def run_replica(
    config: Config,
    directory: RunDirectory,
    replica_id: str,
    coordinator_address: str,
    *,
    rank: int = 0,
    join_crew: Enlist | None = None,
) -> None:
    """Trains as `replica_id`, or as one rank of it, until the run is over.

    `join_crew` joins the ranks in another way than the config's. ConfigError, CommsError or CheckpointError, each one
    line.
    """
    section = replica_of(config, replica_id)
    is_alone = section.ranks == 1 and not section.pipeline
    name = replica_id if is_alone else f"{replica_id}.{rank}"
    security = security_of(config, replica_id)
    corpus = open_corpus(
        config.data, vocab_size=model_vocab_size(config.model), seed=config.run.seed, directory=directory.corpus
    )
    join_crew = join_crew or enlist(config, section, rank, coordinator_address, security)
    with (
        Ledger(directory.ledger(name), replica_id) as ledger,
        join_crew(ledger) as crew,
        discovery_of(config, replica_id, security) as discovery,
    ):
        device = _device(section, rank)
        seat = seat_of(config, section, crew, device, folder=directory.path, ledger=ledger)
        outer = outer_method(config, seat.model, seat.inner, seat.duties, seat.start)
        if crew.rank == 0:
            write_atomically(directory.facts, json.dumps(facts_of(config, corpus, outer.codec), indent=1).encode())
        with alone_in(directory.path):  # the first time it compiles for a while, which one process can do for all
            prepare(outer.codec)
        checkpoints = Checkpoints(directory.checkpoints, name, config.checkpoint.keep, ranks=crew.ranks)
        settings = TransportSettings(
            replica=replica_id,
            coordinator_address=coordinator_address,
            route=config.exchange.route,
            security=security,
            heartbeat_s=config.exchange.heartbeat_s,
            fetch_deadline_s=config.exchange.fetch_deadline_s,
            outage_deadline_s=config.exchange.outage_deadline_s,
            whereabouts=None if discovery is None else partial(discovery.find, COORDINATOR, LOOK_S),
            liveness_deadline_s=config.exchange.liveness_deadline_s,
        )
        own = GrpcTransport(settings, PayloadStore(directory.payloads(replica_id)), ledger)
        if discovery is not None and crew.rank == 0 and own.address:
            discovery.announce(own.address)
        transport = own if is_alone else CrewTransport(own, crew, own.address)
        try:
            stream = Stream(corpus, config.run.seed)
            replica = Replica(replica_id, config, stream, seat.inner, outer, transport, 0, "")
            _resume(replica, checkpoints)
            replica.theta_digest = outer.digest()
            with watching_replica(config, replica_id, crew.rank, ledger, lambda: replica.round):
                transport.join(introduction(replica, own.address))
                if replica.round:
                    _lend(replica, checkpoints)
                _follow(replica, checkpoints, ledger)
        except (KeyboardInterrupt, SystemExit):
            if crew.rank == 0:
                own.send(Leave("it was told to end"))
            raise
        finally:
            transport.close()


def _follow(replica: Replica, checkpoints: Checkpoints, ledger: Ledger) -> None:
    """Does what the coordinator says until it says that the run is over."""
    every = replica.config.checkpoint.every_rounds
    while True:
        before = replica.round
        match replica.transport.receive():
            case RoundPlan(round=number) as plan if number == replica.round + 1:
                try:
                    take_part(replica, plan)
                except Damaged as damaged:
                    catch_up(replica, damaged.order, checkpoints)
            case CommittedRound(round=number) as committed if number == replica.round + 1:
                follow(replica, committed)
            case CatchUp() as order:
                catch_up(replica, order, checkpoints)
            case Finish(failure):
                if failure:
                    raise RunFailed(failure)
                return
            case RoundPlan() | CommittedRound() | Proposal():
                pass  # a repetition, of a round that is behind us
            case Refusal(reason):
                raise Refused(reason)
        if replica.round > before:
            if replica.round == replica.config.rounds or replica.round // every > before // every:
                checkpoints.write(snapshot_of(replica))
                _lend(replica, checkpoints)
            ledger.flush(replica.round)


def _resume(replica: Replica, checkpoints: Checkpoints) -> None:
    """Goes back to the newest round of which every rank has its checkpoint whole."""
    digest = replica.config.digest()
    snapshot = checkpoints.newest(digest)
    agreed_round = replica.outer.duties.crew.least(snapshot.info.round if snapshot else 0)
    if snapshot is not None and snapshot.info.round > agreed_round:
        snapshot = checkpoints.newest(digest, not_after=agreed_round)  # another rank was killed before it wrote its own
    if snapshot is None or agreed_round == 0:
        return
    if snapshot.info.round != agreed_round:
        raise CheckpointError(f"this rank has no checkpoint of round {agreed_round}, from which the others can resume")
    try:
        replica.outer.load(snapshot.theta, snapshot.shared, snapshot.own)
        if snapshot.inner:
            replica.inner.load_state_tensors(snapshot.inner)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the checkpoint of round {snapshot.info.round} does not fit the model: {error}") from error
    replica.round = snapshot.info.round
    _log.info("resuming from the checkpoint of round %d", replica.round)


def _lend(replica: Replica, checkpoints: Checkpoints) -> None:
    """Lends the newest checkpoint's part that all replicas hold alike to those who have to catch up."""
    if (shared := checkpoints.shared_file(_info(replica))) is not None:
        replica.transport.offer(replica.round, replica.theta_digest, shared)


def snapshot_of(replica: Replica) -> Snapshot:
    """All that a checkpoint of it holds; not copied."""
    outer = replica.outer
    inner = replica.inner.state_tensors() if outer.remembers else {}  # else it is what all share
    return Snapshot(_info(replica), outer.theta(), outer.shared_state(), outer.own_state(), inner)


def _info(replica: Replica) -> CheckpointInfo:
    return CheckpointInfo(replica.round, replica.config.digest(), replica.theta_digest)


def introduction(replica: Replica, address: str) -> Join:
    """How it presents itself, serving its payloads at `address`."""
    return Join(
        replica=replica.id,
        incarnation=secrets.token_hex(8),
        address=address,
        config_digest=replica.config.digest(),
        corpus_digest=replica.stream.corpus.fingerprint,
        tokens_per_epoch=replica.stream.tokens_per_epoch,
        applied_round=replica.round,
        theta_digest=replica.theta_digest,
    )


def replica_of(config: Config, replica_id: str) -> ReplicaConfig:
    """Its section of the config; ConfigError when it has none."""
    for replica in config.replica:
        if replica.id == replica_id:
            return replica
    raise ConfigError(f"replica {replica_id!r} is none of {', '.join(r.id for r in config.replica)}")


def _device(replica: ReplicaConfig, rank: int) -> torch.device:
    chosen = replica.device
    if chosen == "auto":
        return torch.device(f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(chosen)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"replica.device = {chosen!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def facts_of(config: Config, corpus: Corpus, codec: Codec) -> dict[str, object]:
    """What a report wants to know of model and corpus; equal on all replicas."""
    shapes = fragment_shapes(config.model)
    sizes = num_parameters(shapes)
    layouts = {name: codec.layout({key: tuple(s) for key, s in named.items()}) for name, named in shapes.items()}
    return {
        "model": {
            "name": _model_name(config),
            "parameters": sum(sizes.values()),
            "hidden_size": shapes["embed"][EMBEDDING][1],
        },
        "fragments": {
            name: {
                "parameters": sizes[name],
                "payload_bytes": codec.num_bytes(layout),
                "first_payload_bytes": codec.num_bytes(layout, 1),
                "values": codec.num_values(layout),
            }
            for name, layout in layouts.items()
        },
        "snapshot_bytes": _snapshot_bytes(config, {name: s for named in shapes.values() for name, s in named.items()}),
        "tokens_per_epoch": corpus.tokens_per_epoch,
        "corpus_digest": corpus.fingerprint,
        "unigram_entropy_nats": _unigram_entropy_nats(corpus),
    }


def _snapshot_bytes(config: Config, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """How long the file is that a replica begins with; None where the inner optimizer decides that."""
    match config.outer.method:
        case "sparseloco":
            return shared_file_bytes(shapes, 0)
        case "diloco":
            return shared_file_bytes(shapes, int(config.outer.momentum > 0))
        case _:
            return None


def _model_name(config: Config) -> str:
    if config.model.path is not None:
        return Path(config.model.path).name
    model = config.model
    return f"llama-{model.hidden_size}x{model.layers}"


def _unigram_entropy_nats(corpus: Corpus) -> float:
    """Loss of the best model that knows nothing but how often each token occurs: what training must beat."""
    counts = np.bincount(corpus.tokens)
    shares = counts[counts > 0] / len(corpus.tokens)
    return float(-(shares * np.log(shares)).sum())
