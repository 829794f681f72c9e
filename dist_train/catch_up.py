"""How a replica that is behind gets to where the others are.

    its own state, and it is near         redo the rounds since, from the history                         exact
    far behind, or new                    a snapshot of the others' outer parameters, then the rounds since
    damaged                               the same; or, where nobody has a snapshot, all rounds from the first

A snapshot is believed when the parameters in it have the digest that the majority of the replicas reported after that
round, which the coordinator remembers. It holds what all replicas hold alike (theta, outer momentum) and nothing of a
replica's own: who begins with one begins with an empty error feedback and a fresh inner optimizer. That costs it what
it had not sent yet, and the others nothing. A replica of several ranks, of which none holds all, replays instead.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from comms import failpoints
from comms.agreement import Applied, CatchUp, SnapshotSource
from comms.errors import CommsError
from dist_train.checkpoint import CheckpointError, Checkpoints, read_checkpoint
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model
from dist_train.outer import OuterMethod, outer_method
from dist_train.round import Replica, follow

_HEADER_BYTES = 2**24
"""What a snapshot's file may hold beside its tensors: their names and places."""
_log = logging.getLogger(__name__)


def catch_up(replica: Replica, order: CatchUp, checkpoints: Checkpoints) -> None:
    """Brings a replica to the committed round. CommsError when payloads that it needs can't be had."""
    is_damaged = bool(order.damaged_digest) and order.damaged_digest == replica.theta_digest
    if is_damaged:
        _log.warning("these parameters are not the others': forgetting them and all checkpoints of them")
        checkpoints.discard(replica.theta_digest)
    if not _begin_with_a_snapshot(replica, order, is_damaged=is_damaged, beside=checkpoints.folder) and is_damaged:
        _begin_anew(replica)
    if replica.round < order.committed_round:
        _log.info("catching up from round %d to %d", replica.round, order.committed_round)
    for committed in replica.transport.history(replica.round):
        failpoints.reach("during-catch-up", committed.round)
        follow(replica, committed)


def _begin_with_a_snapshot(replica: Replica, order: CatchUp, *, is_damaged: bool, beside: Path) -> bool:
    """Takes the first of the snapshots that is to be had and is sound. False when there is none, or none is newer."""
    for source in order.snapshots:
        if source.offer.round <= replica.round and not is_damaged:
            return False
        try:
            _take(replica, source, beside)
        except (CommsError, SafetensorError, CheckpointError, OSError) as error:
            _log.warning("the snapshot of round %d is passed over: %s", source.offer.round, error)
        else:
            return True
    return False


def _take(replica: Replica, source: SnapshotSource, beside: Path) -> None:
    """Fetches a snapshot, and makes it the replica's state if it is sound; else the replica is as before."""
    offer = source.offer
    theta, shared = replica.outer.theta(), replica.outer.shared_state()
    num_bytes = sum(tensor.nbytes for tensor in (*theta.values(), *shared.values()))
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".snapshot-") as folder:
        file = Path(folder) / "outer.safetensors"
        replica.transport.fetch_snapshot(source, file, 2 * num_bytes + _HEADER_BYTES)
        _, parts = read_checkpoint(file)
    fresh = _fresh_outer(replica)
    try:
        fresh.load(parts["theta"], parts.get("shared", {}), {})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"it does not fit the model: {error}") from None
    if fresh.digest() != offer.theta_digest:
        raise CheckpointError("its parameters are not those that the replicas agreed on")
    _become(replica, offer.round, fresh)


def _begin_anew(replica: Replica) -> None:
    """Goes back to before the first round."""
    _become(replica, 0, _fresh_outer(replica))


def _become(replica: Replica, number: int, fresh: OuterMethod) -> None:
    replica.inner.forget()
    replica.outer.load(fresh.theta(), fresh.shared_state(), {})
    replica.round, replica.theta_digest = number, replica.outer.digest()
    _log.info("beginning after round %d, parameters %s", number, replica.theta_digest[:12])
    replica.transport.send(Applied(number, replica.theta_digest))


def _fresh_outer(replica: Replica) -> OuterMethod:
    """What the replica's outer method was before the first round."""
    config = replica.config
    model = build_model(config.model, config.run.seed)
    inner = InnerOptimizer(model, config.inner, config.total_steps)
    return outer_method(config, model, inner, replica.outer.duties)
