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


class TrafficPart(_Part):
    """Every transfer of one kind, all members together, counted by the sender and by the receiver."""

    kind: str
    sent_bytes: int
    received_bytes: int
    predicted_bytes: int | None
    """What a closed form says should have been sent."""


class PseudoGradientPart(_Part):
    """How small the exchanged pseudo-gradients were; from counted payload bytes."""

    density: float | None
    """Values sent / parameters."""
    bits_per_value: float | None
    bits_per_parameter: float | None
    ratio_vs_fp32: float | None


class LinkPart(_Part):
    """One limited link of a simulated run."""

    from_: str = Field(alias="from")
    to: str
    limit_bits_per_second: float | None
    latency_s: float | None
    enforced_by: str
    goodput_bits_per_second: float | None


class BaselinesPart(_Part):
    """What others would have sent for the same tokens and replicas; formulas in `dist_train.baselines`."""

    ddp_fp32_bytes: int | None
    ddp_bf16_bytes: int | None
    diloco_fp32_bytes: int | None
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

    def to_json(self) -> str:
        """The contract: one JSON object."""
        return self.model_dump_json(indent=2, by_alias=True)
