"""What a report says. The dump of `Report` is what `report --json` prints; its keys are a contract, null is unknown."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["complete", "running", "interrupted"]


class _Part(BaseModel):
    # A loss that is not a number has no JSON; it becomes null.
    model_config = ConfigDict(frozen=True, populate_by_name=True, ser_json_inf_nan="null")


class ModelPart(_Part):
    """The model being trained."""

    name: str | None
    parameters: int | None


class ReplicaPart(_Part):
    """One replica's share of the work."""

    id: str
    kind: Literal["dense", "pipeline"]
    ranks: int
    stages: int | None
    rank_k: int | None
    tokens: int
    rounds_committed: int
    sent_bytes: int = 0
    """Counted by itself, of every kind."""
    received_bytes: int = 0
    phase_s: dict[str, float] = {}
    """Seconds in each phase, all rounds together."""
    utilisation: float | None = None
    """Share of those that was spent computing."""


class RoundPart(_Part):
    """One committed round."""

    round: int
    contributors: tuple[str, ...]
    theta_digest: str
    loss: float | None
    compute_s: float | None
    """Mean over the replicas that told."""
    exchange_s: float | None
    """The same of encode, publish, wait, fetch, decode and apply together."""
    validation_loss: float | None
    tokens: int
    agreed: bool
    """All replicas that applied the round reported the same digest."""
    absent: dict[str, str]
    """Who was left out, and why."""
    started_s: float | None = None
    """When it was opened: seconds of open rounds before it, so that a pause between two launches takes no room."""
    round_s: float | None = None
    """From opening to commit."""
    sent_bytes: int = 0
    """Counted, every kind and member."""
    pseudo_gradient_bytes: int = 0
    """Of those, pseudo-gradients."""
    predicted_bytes: int | None = None
    """What a closed form says of the pseudo-gradients."""


class TrafficPart(_Part):
    """Every transfer of one kind, all members together, counted by the sender and by the receiver."""

    kind: str
    sent_bytes: int
    received_bytes: int
    predicted_bytes: int | None
    """What a closed form says should have been sent."""


class MemberTrafficPart(_Part):
    """What one member counted of one kind."""

    member: str
    kind: str
    sent_bytes: int
    received_bytes: int


class PairPart(_Part):
    """What went from one member to another, every kind, by its sender's and by its receiver's count."""

    from_: str = Field(alias="from")
    to: str
    sent_bytes: int
    received_bytes: int


class TimelinePart(_Part):
    """What one replica did in one round: phase, start and seconds, from the opening of the round."""

    round: int
    replica: str
    spans: tuple[tuple[str, float, float], ...]


class PointPart(_Part):
    """Where the run stood after a round: everything that it had spent until then."""

    round: int
    tokens: int
    sent_bytes: int
    elapsed_s: float | None
    """Seconds of open rounds."""
    loss: float | None
    validation_loss: float | None


class HealthPart(_Part):
    """What one replica told of its compression after one round, by name of the figure."""

    round: int
    replica: str
    figures: dict[str, float]


class FaultPart(_Part):
    """Who was left out of which round, or disagreed in it, and why."""

    round: int
    replica: str
    reason: str


class PseudoGradientPart(_Part):
    """How small the exchanged pseudo-gradients were; from counted payload bytes."""

    density: float | None
    """Values sent / parameters."""
    bits_per_value: float | None
    bits_per_parameter: float | None
    ratio_vs_fp32: float | None


class LinkPart(_Part):
    """One direction between two members that sent each other more than words, or whose link is limited."""

    from_: str = Field(alias="from")
    to: str
    limit_bits_per_second: float | None
    latency_s: float | None
    enforced_by: str
    goodput_bits_per_second: float | None
    """Bytes for each second in which a transfer was under way, the round trip of asking included."""
    received_bytes: int = 0
    busy_s: float | None = None
    """Seconds in which a transfer was under way: at most so many."""
    predicted_s: float | None = None
    """Seconds that these bytes take at the limit."""


class StepsPart(_Part):
    """A block of inner steps of one replica: the means, and the number of its last step."""

    step: int
    planning_s: float | None
    waiting_s: float | None
    predicted_s: float | None
    measured_s: float | None


class SequencePart(_Part):
    """How one replica of several ranks planned its inner steps; seconds are means over them."""

    replica: str
    planners: dict[str, int]
    """Steps by who planned them."""
    steps: int
    late: int
    """Steps whose plan was not there in time, and that ran by a quick one."""
    gap: float | None
    """How much longer plans take than the bound below which no plan is, by the cost model."""
    planning_s: float | None
    """Beside the training, one step ahead."""
    waiting_s: float | None
    """What the step waited for its plan."""
    predicted_s: float | None
    measured_s: float | None
    reduce_s: float | None
    """The end of a measured step: waiting for slower ranks, and summing the gradients."""
    groups: dict[int, int]
    """Groups by how many ranks they had."""
    curve: tuple[StepsPart, ...] = ()


class BaselinesPart(_Part):
    """What others would have sent for the same tokens and replicas; formulas in `dist_train.baselines`."""

    ddp_fp32_bytes: int | None
    ddp_bf16_bytes: int | None
    diloco_fp32_bytes: int | None
    diloco_bf16_bytes: int | None = None
    sparseloco_reference_wire_bytes: int | None


class LossPart(_Part):
    """Where the loss began and where it is, in nats a token."""

    train_first: float | None
    train_last: float | None
    validation_first: float | None
    validation_last: float | None
    unigram_entropy: float | None
    """What a model reaches that only knows how often each token of the corpus occurs."""


class Report(_Part):
    """What a run did and what it sent."""

    run: str
    status: Status
    rounds: int
    """Committed so far."""
    rounds_planned: int
    config_digest: str
    method: str
    model: ModelPart
    replicas: tuple[ReplicaPart, ...]
    rounds_detail: tuple[RoundPart, ...]
    traffic: tuple[TrafficPart, ...]
    pseudo_gradient: PseudoGradientPart
    links: tuple[LinkPart, ...]
    baselines: BaselinesPart
    loss: LossPart
    tokens: int
    utilisation: float | None
    """Share of all replicas' accounted time that was spent computing."""
    seconds: Literal["measured", "simulated"] = "measured"
    """`simulated` by virtual replicas: nobody waited for them."""
    sent_bytes: int = 0
    """Counted by all senders, every kind."""
    received_bytes: int = 0
    sent_bytes_per_replica_round: float | None = None
    """Pseudo-gradient bytes sent, for each contribution to a round."""
    ratios: dict[str, float] = {}
    """Each of `baselines` over the pseudo-gradient bytes sent, by its name without `_bytes`."""
    members: tuple[MemberTrafficPart, ...] = ()
    matrix: tuple[PairPart, ...] = ()
    timeline: tuple[TimelinePart, ...] = ()
    curve: tuple[PointPart, ...] = ()
    health: tuple[HealthPart, ...] = ()
    sequences: tuple[SequencePart, ...] = ()
    """Of the replicas whose ranks share sequences."""
    faults: tuple[FaultPart, ...] = ()

    def to_json(self) -> str:
        """The contract: one JSON object."""
        return self.model_dump_json(indent=2, by_alias=True)
