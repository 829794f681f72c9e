"""What a plan says. The dump of `Plan` is what `plan --json` prints; its keys are a contract (docs/plan.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dist_train.planning.memory import StageMemory
from dist_train.planning.round_seconds import PhaseSeconds


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, ser_json_inf_nan="null")


class ModelPart(_Part):
    """The model, by formula."""

    name: str
    parameters: int
    flops_per_token: int
    """Forward and backward."""


class PayloadPart(_Part):
    """What one replica contributes to one round."""

    values: int
    payload_bytes: int
    """With the bits that are assumed, or our codec's after many rounds."""
    first_round_bytes: int
    """Our codec's in the first round, when there is most to learn."""
    codec_bytes: int
    """Our codec's, whatever is assumed."""
    published_bytes: int | None
    """With 12 + 2 bits a value, as the paper counts; null unless the method is sparseloco."""
    assumed_bits_per_value: float | None
    bits_per_value: float
    bits_per_parameter: float
    ratio_vs_fp32: float


class TrafficPart(_Part):
    """One round of all replicas, by kind."""

    kind: str
    sent_bytes: int


class BaselinesPart(_Part):
    """What others would send in one round of as many inner steps; formulas in `dist_train.baselines`."""

    ddp_fp32_bytes: int
    ddp_bf16_bytes: int
    diloco_fp32_bytes: int
    sparseloco_reference_wire_bytes: int | None


class StagePart(_Part):
    """One machine of a replica."""

    device: str
    layers: int
    first_layer: int
    compute_s: float | None
    """Of one micro-batch."""
    memory: StageMemory
    limit_bytes: float | None
    fits: bool | None
    """null: how much memory there is, is not known."""


class LinkPart(_Part):
    """A way that bytes of one round take."""

    from_: str = Field(alias="from")
    to: str
    limit_bits_per_second: float | None
    latency_s: float
    bytes_per_round: int
    seconds_per_round: float


class ReplicaPart(_Part):
    """`count` replicas that are alike."""

    ids: tuple[str, ...]
    """The first few."""
    count: int
    kind: Literal["dense", "pipeline"]
    rank_k: int | None
    boundary_bound: bool
    """A boundary, not a machine, sets the pace of the pipeline."""
    stages: tuple[StagePart, ...]
    links: tuple[LinkPart, ...]
    phases: PhaseSeconds
    waiting_s: float | None
    """For the slowest replica."""
    round_s: float | None
    utilisation: float | None
    tokens_per_s: float | None
    sent_bytes: int
    received_bytes: int
    """Of one round, one of these replicas."""


class CrossoverPart(_Part):
    """All-gather against a relay that adds up: what each replica downloads in a round. See `planning.crossover`."""

    replicas: int | None
    """From so many on the relay's sum is smaller."""
    all_gather_bytes: int
    aggregate_bytes: int
    """Both for the replicas of this plan."""


class CostPart(_Part):
    """Of the whole run."""

    currency: str
    devices: float
    traffic: float
    total: float
    per_billion_tokens: float


class ProblemPart(_Part):
    """What does not fit, or wastes time, and what to change."""

    severity: Literal["error", "advice"]
    what: str
    remedy: str


class Plan(_Part):
    """What a run will send, hold and take."""

    run: str
    method: str
    config_digest: str
    model: ModelPart
    replicas: int
    rounds: int
    tokens_per_round: int
    calibration: str
    """Where the seconds come from."""
    payload: PayloadPart
    traffic: tuple[TrafficPart, ...]
    baselines: BaselinesPart
    groups: tuple[ReplicaPart, ...]
    idle_devices: tuple[str, ...]
    placed: bool
    """The grouping of machines is the plan's own choice."""
    round_s: float | None
    run_s: float | None
    utilisation: float | None
    """Share of all replicas' time that is spent computing."""
    tokens_per_s: float | None
    tokens_per_day: float | None
    crossover: CrossoverPart | None
    cost: CostPart | None
    problems: tuple[ProblemPart, ...]

    def to_json(self) -> str:
        """The contract: one JSON object."""
        return self.model_dump_json(indent=2, by_alias=True)
