"""The replicas, and what goes on inside them: [[replica]], [pipeline], [sequence]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dist_train.config.section import Section
from dist_train.config.texts import DeviceName, Host, Identifier, PlannerName, Seconds


class ReplicaConfig(Section):
    """[[replica]]: one full copy of the model being trained."""

    id: Identifier
    """Its name, everywhere: in logs, reports, certificates and file names."""
    device: DeviceName = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""
    ranks: int = Field(default=1, ge=1, le=1024)
    """Processes that share the work of this replica on one machine."""
    shard: bool = False
    """Whether its ranks hold the model and the inner optimizer in shards (FSDP2), instead of whole on each."""
    pipeline: tuple[Identifier, ...] = ()
    """The machines that make up this replica, one stage each, the embedding's first; left out: one machine holds
    all layers."""
    split: tuple[int, ...] | None = None
    """Layers of each stage; as even as can be when left out."""
    micro_batches: int | None = Field(default=None, ge=1)
    """Parts of a batch that follow one another through the stages; four for each stage when left out."""
    compression: Literal["none", "subspace", "projected-stream"] = "subspace"
    """What crosses between stages. `none`: the whole stream. `projected-stream`: its coordinates in a subspace, weights
    free. `subspace`: the same, and weights before the last boundary are bound to it, so that nothing is lost."""
    rank_k: int | None = Field(default=None, ge=1)
    """Numbers a token that cross a boundary; an eighth of the hidden size when left out."""
    basis: Literal["seeded", "fitted"] = "seeded"
    """Where the subspace of `projected-stream` comes from: the run's seed, or the activations of the first rounds."""
    wire_dtype: Literal["fp32", "bf16", "int8"] = "bf16"
    """What one of these numbers takes: four bytes, two, or one beside a scale for each token."""
    channel: Literal["grpc", "gloo"] = "grpc"
    """What carries a pipeline's activations: our own channels, encrypted like every other, or gloo in plain text."""
    host: Host | None = None
    """The machine of all its processes, as ssh names it; the launcher's own when left out."""
    hosts: tuple[Host, ...] = ()
    """The machine of each stage of a pipeline, in place of `host`."""

    @model_validator(mode="after")
    def _stages_fit(self) -> ReplicaConfig:
        if twice := sorted({stage for stage in self.pipeline if self.pipeline.count(stage) > 1}):
            raise ValueError(f'pipeline names "{twice[0]}" twice; each stage has a name of its own')
        if len(self.pipeline) == 1 or (self.pipeline and self.ranks > 1):
            raise ValueError(
                f"pipeline = {list(self.pipeline)} with ranks = {self.ranks}: a pipeline has two stages or more, each "
                f"of one rank; leave one of the two keys out"
            )
        if self.basis == "fitted" and self.compression != "projected-stream":
            raise ValueError(
                f'basis = "fitted" does nothing under compression = "{self.compression}": "none" projects '
                f'nothing, and under "subspace" the stream lies in its basis already; choose "projected-stream", or '
                f'basis = "seeded"'
            )
        if self.hosts and (self.host is not None or len(self.hosts) != len(self.pipeline)):
            raise ValueError(
                f"hosts = {list(self.hosts)} names {len(self.hosts)} machines for the {len(self.pipeline)} stages of "
                f"pipeline; give one for each and no host, or one host for all"
            )
        if self.split is None:
            return self
        if len(self.split) != len(self.pipeline):
            raise ValueError(
                f"split = {list(self.split)} has {len(self.split)} numbers for the {len(self.pipeline)} stages of "
                f"pipeline; give one for each"
            )
        if min(self.split, default=1) < 1:
            stage = next(name for name, layers in zip(self.pipeline, self.split, strict=True) if layers < 1)
            raise ValueError(f"split = {list(self.split)} leaves stage {stage} with no layers; give each at least one")
        return self

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of its processes: those of its stages, or its own."""
        return self.pipeline or (self.id,)

    @property
    def machines(self) -> tuple[str | None, ...]:
        """The host of each process; None: the launcher's machine."""
        return self.hosts or (self.host,) * len(self.processes)


class PipelineConfig(Section):
    """[pipeline]: how long the stages of a replica wait for each other, and how much they keep meanwhile."""

    transfer_deadline_s: Seconds = 300.0
    """For each single tensor that one stage waits for; the other may be computing, or starting, meanwhile."""
    outage_deadline_s: Seconds = 20.0
    """How long a broken connection between two stages may take to come back."""
    buffer_bytes: int = Field(default=64 * 2**20, ge=2**16, le=2**36)
    """For each pair of stages and direction: copies at the sender, and what nobody waits for yet at the receiver."""


class SequenceConfig(Section):
    """[sequence]: how the ranks of one replica (`ranks` above 1) share the documents of a step."""

    planner: PlannerName = "adaptive"
    """Who decides which documents are scattered over how many ranks: `adaptive`, for every step anew;
    `best-homogeneous`, one degree a step; `static:4`, that degree always; `off`, every document on one rank."""
    max_tokens_per_rank: int | None = Field(default=None, ge=1)
    """Tokens that one rank holds in a forward pass at most. When left out: a quarter more than its even share of a
    batch, or what the longest document needs of it, if that is more."""
    plan_deadline_s: Seconds | None = 1.0
    """How long a step waits for its plan before it runs by a simpler one. Longer where resumed steps must repeat bit
    for bit: another plan adds the same numbers in another order."""
