"""What the coordinator knows of a run, what can happen to it, and what it may answer: the round machine's nouns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from comms.agreement import (
    Acknowledge,
    Applied,
    CommittedRound,
    CoordinatorMessage,
    Holder,
    Join,
    Leave,
    Manifest,
    Offer,
    Problem,
    Report,
    RoundSummary,
)
from comms.leases import Lease, LeaseBook


class Phase(StrEnum):
    """Where the open round stands."""

    GATHER = "gather"
    WORK = "work"
    AGREE = "agree"
    ENDING = "ending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class RoundRules:
    """What the run decided before it began. Deadlines in seconds; see [exchange] of the config."""

    replicas: tuple[str, ...]
    config_digest: str
    rounds: int
    lease_tokens: int
    min_replicas: int
    gather_deadline_s: float
    publish_deadline_s: float
    fetch_deadline_s: float
    liveness_deadline_s: float
    reconnect_deadline_s: float = 5.0
    most_payload_bytes: int = 4 * 2**30
    work_deadline_s: float = 3600.0
    ending_deadline_s: float = 120.0
    most_replicas: int = 0
    """How many replicas may take part at once, those named above and those that join; 0: nobody joins."""
    most_faults: int = 3
    """With so many broken payloads, or damaged parameters, a replica is expelled."""
    most_replayed_rounds: int = 20
    """A replica that is further behind begins with a snapshot."""


@dataclass(frozen=True)
class Member:
    """A replica as the coordinator knows it."""

    incarnation: str
    address: str
    applied_round: int
    theta_digest: str
    last_heard_s: float
    planned_round: int = 0
    """The round of the last RoundPlan sent over the present stream."""
    gone_since_s: float | None = None
    """When its stream broke, unless it has come back."""
    rank_addresses: tuple[str, ...] = ()
    """Where its other ranks serve payloads."""

    def holders(self, replica: str) -> tuple[Holder, ...]:
        """Who serves this member's payloads; nobody when it only dials out."""
        return tuple(Holder(replica, address) for address in (self.address, *self.rank_addresses) if address)


@dataclass(frozen=True)
class RunState:
    """Everything the machine knows. Frozen; mappings in it are replaced, never changed."""

    rules: RoundRules
    phase: Phase = Phase.GATHER
    round: int = 1
    """The round that is open, or will be next."""
    since_s: float = 0.0
    """When the phase began."""
    gathering: tuple[str, ...] = ()
    """Whom GATHER waits for; everybody named in the config when empty."""
    members: Mapping[str, Member] = field(default_factory=dict)
    corpus_digest: str = ""
    book: LeaseBook | None = None
    short_since_s: float | None = None
    """Since when the open round has lacked replicas."""
    leases: Mapping[str, Lease] = field(default_factory=dict)
    """The roster of the open round: who holds which part of the corpus."""
    reports: Mapping[str, Report] = field(default_factory=dict)
    first_report_s: float | None = None
    opened_s: float = 0.0
    attempt: int = 0
    manifest: Manifest = ()
    acknowledged: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    """Who is left out of the open round, and why."""
    set_aside: Mapping[str, Report] = field(default_factory=dict)
    """Reports of the open round whose payloads were refused; tried again should the round lack replicas."""
    late: Mapping[str, Report] = field(default_factory=dict)
    """Reports that came when the round had been proposed without them; they count if the proposal falls."""
    committed: CommittedRound | None = None
    committed_reports: Mapping[str, Report] = field(default_factory=dict)
    committed_absent: Mapping[str, str] = field(default_factory=dict)
    applied: Mapping[str, Applied] = field(default_factory=dict)
    """What those told who have applied the committed round. One that was started again since has told nothing."""
    round_s: float = 0.0
    """From opening to commit of the committed round."""
    summarised_round: int = 0
    tokens: int = 0
    """Trained in all committed rounds."""
    failure: str = ""
    faults: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What each replica was found guilty of: broken payloads, damaged parameters."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Digest of the parameters that a replica was told to forget, until it holds others."""
    offers: Mapping[str, Offer] = field(default_factory=dict)
    """The newest snapshot that each replica serves."""
    agreed: Mapping[int, str] = field(default_factory=dict)
    """Digest that the majority held after a round; the recent rounds, and those of which there are snapshots."""

    @property
    def known(self) -> frozenset[str]:
        """The replicas of this run: named in the config, taking part, or awaited after a restart."""
        return frozenset((*self.rules.replicas, *self.members, *self.leases, *self.gathering))

    @property
    def behind(self) -> frozenset[str]:
        """Members that have not applied the last committed round."""
        return frozenset(r for r, member in self.members.items() if member.applied_round < self.committed_round)

    @property
    def committed_round(self) -> int:
        """The last committed round; 0 before the first."""
        return self.committed.round if self.committed else 0


# ---- events and actions ----


@dataclass(frozen=True)
class Heard:
    """A member said something. Everything but a Heartbeat is journaled."""

    replica: str
    message: Join | Report | Acknowledge | Applied | Leave | Offer


@dataclass(frozen=True)
class Alive:
    """A member's heartbeat."""

    replica: str


@dataclass(frozen=True)
class Gone:
    """A member's stream broke: its process has ended, or the network has a hiccup and it will be back at once."""

    replica: str


@dataclass(frozen=True)
class Ticked:
    """Time has passed, perhaps beyond a deadline."""


@dataclass(frozen=True)
class Slept:
    """The coordinator's process stood still and heard nobody: that time counts against no deadline."""

    seconds: float


@dataclass(frozen=True)
class Stopped:
    """The operator ends the run."""

    reason: str


@dataclass(frozen=True)
class Restarted:
    """The coordinator has come back; `now_s` may have nothing to do with the times in the state."""


Event = Heard | Alive | Gone | Ticked | Slept | Restarted | Stopped


@dataclass(frozen=True)
class Send:
    """Say `message` to `replica`, if it is there."""

    replica: str
    message: CoordinatorMessage


@dataclass(frozen=True)
class Record:
    """Write the committed round into the history, before anything else is sent."""

    committed: CommittedRound


@dataclass(frozen=True)
class Summarise:
    """Write the round's line for people."""

    summary: RoundSummary


Action = Send | Record | Summarise
