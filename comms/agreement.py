"""The nouns of a round's agreement: what replicas report, what is proposed, what was committed.

All are frozen values without behaviour. `comms.rounds` decides with them, `comms.wire` turns them into messages.
Digests are SHA-256 in hex.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from comms.leases import Lease

COORDINATOR = "coordinator"
"""The coordinator's name in ledgers, in certificates and as a holder of payloads."""


@dataclass(frozen=True)
class Payload:
    """One fragment of one replica, encoded."""

    fragment: str
    digest: str
    num_bytes: int


@dataclass(frozen=True)
class Entry:
    """One payload of a manifest, and how much it weighs."""

    replica: str
    fragment: str
    digest: str
    num_bytes: int
    weight_tokens: int


Manifest = tuple[Entry, ...]


@dataclass(frozen=True)
class Problem:
    """A payload that a replica can't get, or won't accept, and why."""

    digest: str
    reason: str
    broken: bool = False
    """It is here, and is not what its fragment allows."""


@dataclass(frozen=True)
class Holder:
    """A replica that serves payloads, and where; one for each of its ranks."""

    replica: str
    address: str


# ---- what a replica tells the coordinator ----


@dataclass(frozen=True)
class Join:
    """A replica presents itself, at the start and whenever its stream broke."""

    replica: str
    incarnation: str
    address: str
    config_digest: str
    corpus_digest: str
    tokens_per_epoch: int
    applied_round: int
    theta_digest: str
    rank_addresses: tuple[str, ...] = ()
    """Where its other ranks serve their payloads, when it has several."""


@dataclass(frozen=True)
class Heartbeat:
    """The replica's process lives."""


@dataclass(frozen=True)
class Report:
    """The replica's inner steps are done and its payloads can be fetched."""

    round: int
    payloads: tuple[Payload, ...]
    tokens: int
    loss: float
    phase_s: Mapping[str, float] = field(default_factory=dict)
    unused: Lease = ()
    """What of its lease the replica did not get to; it goes back when the round commits."""


@dataclass(frozen=True)
class Acknowledge:
    """The replica holds all payloads of the proposal, but for the problems that it names."""

    round: int
    attempt: int
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Applied:
    """The replica has taken the outer step of a committed round."""

    round: int
    theta_digest: str
    validation_loss_sum: float = 0.0
    validation_targets: int = 0
    phase_s: Mapping[str, float] = field(default_factory=dict)
    health: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Leave:
    """The replica goes, on purpose."""

    reason: str


@dataclass(frozen=True)
class Offer:
    """The replica serves a snapshot: the outer parameters after a round, and what else all replicas hold alike."""

    round: int
    theta_digest: str
    index_digest: str
    """A payload that lists the snapshot's parts: see comms.snapshots."""
    index_bytes: int


MemberMessage = Join | Heartbeat | Report | Acknowledge | Applied | Leave | Offer


# ---- what the coordinator tells a replica ----


@dataclass(frozen=True)
class Refusal:
    """The replica cannot take part; joining again as it is won't help."""

    reason: str


@dataclass(frozen=True)
class RoundPlan:
    """A round is open, and this is the replica's part of the corpus."""

    round: int
    lease: Lease


@dataclass(frozen=True)
class Proposal:
    """What the round would consist of; nobody applies it before its commit."""

    round: int
    attempt: int
    manifest: Manifest
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True)
class CommittedRound:
    """A round that everybody applies."""

    round: int
    manifest: Manifest
    leases: Mapping[str, Lease]
    holders: tuple[Holder, ...] = ()

    @property
    def contributors(self) -> tuple[str, ...]:
        """The replicas of the manifest, each once, in its order."""
        return tuple(dict.fromkeys(entry.replica for entry in self.manifest))


@dataclass(frozen=True)
class SnapshotSource:
    """A snapshot that can be had, and from whom."""

    offer: Offer
    holders: tuple[Holder, ...]


@dataclass(frozen=True)
class CatchUp:
    """The replica is behind: it reads the history up to here, applies it and reports Applied."""

    committed_round: int
    snapshots: tuple[SnapshotSource, ...] = ()
    """Where to begin rather than with what the replica has, best first; none when that is near enough."""
    damaged_digest: str = ""
    """Parameters that are damaged: a replica that holds them forgets all it has."""


@dataclass(frozen=True)
class Finish:
    """The run is over; `failure` is empty when every round was committed."""

    failure: str = ""


CoordinatorMessage = Refusal | RoundPlan | Proposal | CommittedRound | CatchUp | Finish


# ---- what the coordinator writes down ----


@dataclass(frozen=True)
class RoundSummary:
    """A committed round for people: what `metrics.jsonl` holds."""

    round: int
    contributors: tuple[str, ...]
    theta_digest: str
    agreed: bool
    loss: float
    validation_loss: float | None
    tokens: Mapping[str, int]
    phase_s: Mapping[str, Mapping[str, float]]
    health: Mapping[str, Mapping[str, float]]
    payload_bytes: Mapping[str, int]
    absent: tuple[Mapping[str, str], ...]
    round_s: float
