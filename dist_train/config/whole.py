"""The config of a run: all sections together, what of them members share, and the file that says it again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import tomli_w
from pydantic import Field, model_validator

from dist_train.config.agreement import problems_of
from dist_train.config.exchange import CheckpointConfig, DiscoveryConfig, ExchangeConfig, SecurityConfig
from dist_train.config.foretelling import DeviceConfig, PlanConfig, PricesConfig
from dist_train.config.launching import KubernetesConfig, LaunchConfig, SlurmConfig, SshConfig, WatchConfig
from dist_train.config.links import LinkConfig, SimulateConfig
from dist_train.config.replicas import PipelineConfig, ReplicaConfig, SequenceConfig
from dist_train.config.section import Section, SharedSection
from dist_train.config.training import DataConfig, InnerConfig, ModelConfig, OuterConfig, RunConfig, SparseLoCoConfig


class Config(Section):
    """Everything that decides a run."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    sparseloco: SparseLoCoConfig = SparseLoCoConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    pipeline: PipelineConfig = PipelineConfig()
    security: SecurityConfig = SecurityConfig()
    sequence: SequenceConfig = SequenceConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    launch: LaunchConfig = LaunchConfig()
    ssh: SshConfig = SshConfig()
    slurm: SlurmConfig = SlurmConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    device: tuple[DeviceConfig, ...] = ()
    plan: PlanConfig = PlanConfig()
    prices: PricesConfig = PricesConfig()
    watch: WatchConfig = WatchConfig()
    replica: tuple[ReplicaConfig, ...] = Field(default=(ReplicaConfig(id="a"),), min_length=1)
    link: tuple[LinkConfig, ...] = ()
    simulate: SimulateConfig = SimulateConfig()

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        if (problem := next(problems_of(self), None)) is not None:
            raise ValueError(problem)
        return self

    @property
    def backend(self) -> str:
        """Who starts the run's processes, with the default filled in."""
        has_hosts = any(machine is not None for replica in self.replica for machine in replica.machines)
        return self.launch.backend or ("ssh" if has_hosts else "local")

    @property
    def steps_per_round(self) -> int:
        """Inner steps between two exchanges: H, or 1 under ddp."""
        return 1 if self.outer.method == "ddp" else self.inner.steps

    @property
    def rounds(self) -> int:
        """Exchanges in the whole run: every method takes `outer.rounds * inner.steps` inner steps."""
        return self.outer.rounds * self.inner.steps // self.steps_per_round

    @property
    def total_steps(self) -> int:
        """Inner steps of one replica in the whole run; what the learning-rate schedule spans."""
        return self.outer.rounds * self.inner.steps

    @property
    def validate_every_rounds(self) -> int:
        """Exchanges between two evaluations, `outer.validate_every` in units of this method's rounds."""
        return self.outer.validate_every * self.inner.steps // self.steps_per_round

    @property
    def outer_lr(self) -> float:
        """alpha, with the method's default filled in."""
        return (
            self.outer.lr
            if self.outer.lr is not None
            else {"sparseloco": 1.0, "diloco": 0.7, "ddp": 1.0}[self.outer.method]
        )

    def shared(self) -> dict[str, Any]:
        """All that must be equal among the members of a run, as JSON: not where files, sockets and devices are, and not
        who the members are.
        """
        return {name: section.shared() for name, section in self if isinstance(section, SharedSection)}

    def to_shared_json(self) -> str:
        """What a newcomer gets to know of the run: all that is shared, and which replicas there are."""
        document = self.shared() | {"replica": sorted(replica.id for replica in self.replica)}
        document["exchange"]["most_replicas"] = self.exchange.most_replicas
        return json.dumps(document)

    def digest(self) -> str:
        """SHA-256 (hex) of `shared`."""
        return hashlib.sha256(json.dumps(self.shared(), sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The resolved config, its digest in a comment; `load` of it gives this config back."""
        return f"# config digest {self.digest()}\n" + tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
