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
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from comms import failpoints
from comms.agreement import Applied, CatchUp, SnapshotSource
from comms.errors import CommsError
from dist_train.checkpoint import CheckpointError, Checkpoints, read_checkpoint
from dist_train.model import build_model, fragment_shapes
from dist_train.round import Replica, follow

_HEADER_BYTES = 2**24
"""What a snapshot's file may hold beside its tensors: their names and places."""
MOST_SHARED_PER_VALUE = 2
"""Values that replicas hold alike for each parameter, beside it: ddp's inner optimizer has two."""
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
    """Fetches a snapshot, and makes it the replica's state if it is sound; else the replica is as before.

    Every rank fetches it, and all take it or none.
    """
    failure: Exception | None = None
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        parts = _fetched(replica, source, beside)
    except (CommsError, SafetensorError, CheckpointError, OSError) as error:
        failure = error
    if not replica.outer.duties.crew.least(int(failure is None)):
        raise failure or CheckpointError("another rank could not get it")
    theta, shared = parts["theta"], parts.get("shared", {})
    if replica.outer.digest(theta, shared) != source.offer.theta_digest:
        raise CheckpointError("its parameters are not those that the replicas agreed on")
    _become(replica, source.offer.round, theta, shared)
    replica.snapshots_taken += 1


def _fetched(replica: Replica, source: SnapshotSource, beside: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a snapshot, in the shapes that this rank has, and perhaps others'."""
    theta, shared = replica.outer.theta(), replica.outer.shared_state()
    sizes = fragment_shapes(replica.config.model).values()
    num_bytes = 4 * sum(shape.numel() for named in sizes for shape in named.values()) * (1 + MOST_SHARED_PER_VALUE)
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".snapshot-") as folder:
        file = Path(folder) / "outer.safetensors"
        replica.transport.fetch_snapshot(source, file, 2 * num_bytes + _HEADER_BYTES)
        _, parts = read_checkpoint(file)
    for wanted, part in ((theta, "theta"), (shared, "shared")):
        found = parts.get(part, {})
        for name, tensor in wanted.items():
            if name not in found or found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
                raise CheckpointError(f"it does not fit the model: {part} {name}")
    return parts


def _begin_anew(replica: Replica) -> None:
    """Goes back to before the first round."""
    initial = dict(build_model(replica.config.model, replica.config.run.seed).named_parameters())
    replica.inner.forget()
    shared = {name: torch.zeros_like(tensor) for name, tensor in replica.outer.shared_state().items()}
    _become(replica, 0, {name: parameter.detach() for name, parameter in initial.items()}, shared)


def _become(replica: Replica, number: int, theta: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
    replica.inner.forget()
    replica.outer.load(theta, shared, {})
    replica.round, replica.theta_digest = number, replica.outer.digest()
    _log.info("beginning after round %d, parameters %s", number, replica.theta_digest[:12])
    replica.transport.send(Applied(number, replica.theta_digest))
