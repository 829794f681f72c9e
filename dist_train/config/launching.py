"""Who starts and looks after the processes, and who may watch: [launch], [ssh], [slurm], [kubernetes], [watch]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from comms.address import host_and_port, is_loopback
from dist_train.config.section import Section
from dist_train.config.texts import AddressText, OneLine, Seconds, SlurmOption


class LaunchConfig(Section):
    """[launch]: who starts the processes of the run, and how they are looked after. See docs/launch.md."""

    backend: Literal["local", "ssh", "slurm", "kubernetes"] | None = None
    """When left out: `ssh` if a replica names a host, else `local`. `local` with hosts starts all on this machine."""
    restarts: int = Field(default=3, ge=0)
    """How often a replica that has died is started again; it catches up by itself."""
    lost_host_deadline_s: Seconds = 3600.0
    """How long a host that can't be reached is awaited (`ssh`); the run goes on without it, and it joins again."""


class SshConfig(Section):
    """[ssh]: how the hosts of replicas are reached and prepared (`launch.backend = "ssh"`)."""

    directory: OneLine = "dist-train"
    """The working folder on each host, as seen from the home folder there; relative paths of the config start there."""
    python: OneLine = "python3"
    """An interpreter on each host, as seen from the home folder there, that has what dist-train depends on."""
    code: Literal["send", "installed"] = "send"
    """`send` copies dist-train itself to each host; `installed` wants the very same code to be installed there."""
    silence_s: Seconds = 30.0
    """A process on a host that has not heard from its launcher for so long ends; half of that loses a host here."""
    config_file: str | None = None
    """An ssh_config(5) file in place of ~/.ssh/config, for ports, keys, jump hosts and known hosts."""


class SlurmConfig(Section):
    """[slurm]: what the job asks for (`launch.backend = "slurm"`); it has a task for each replica, or stage of one."""

    options: tuple[SlurmOption, ...] = ()
    """Of sbatch: `["--partition=gpu", "--time=04:00:00", "--gpus-per-task=1"]`."""
    setup: tuple[OneLine, ...] = ()
    """Lines of shell before the tasks are started: `["module load cuda"]`."""
    python: OneLine | None = None
    """The interpreter on the nodes; the one of the launcher when left out."""


class KubernetesConfig(Section):
    """[kubernetes]: what the pods are made of (`launch.backend = "kubernetes"`)."""

    image: OneLine | None = None
    """A container image with dist-train installed."""
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "default"
    """In which everything is made."""
    python: OneLine = "python3"
    """The interpreter in the image."""
    cpu: OneLine = "2"
    """Cores that each replica's pod asks for."""
    memory: OneLine = "8Gi"
    """Memory that each replica's pod asks for and may have."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of each replica's pod."""
    gpu_resource: OneLine = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    storage: OneLine | None = "20Gi"
    """Of the volume in which each replica, and the coordinator, keeps the run; none, and it goes with the pod, when
    empty."""
    storage_class: OneLine | None = None
    """Of the volume; the cluster's default when left out."""
    port: int = Field(default=7000, ge=1, le=65_535)
    """Where the coordinator listens."""


class WatchConfig(Section):
    """[watch]: what may be looked at while the run goes on. Nothing unless a key is given; see docs/watching.md."""

    status_address: AddressText | None = None
    """Where the coordinator serves a page that shows how the run stands, such as "127.0.0.1:9390"."""
    metrics_address: AddressText | None = None
    """Where the coordinator serves /metrics for Prometheus; rank n (from 1, over all [[replica]]) listens at
    port + n."""
    beyond_loopback: bool = False
    """Whether those two may be addresses that other machines reach; they show names, addresses and loss to anybody."""
    tensorboard: str | None = None
    """A folder into which the coordinator writes TensorBoard scalars as rounds are committed."""
    log_format: Literal["text", "json"] = "text"
    """How members write their logs: lines for people, or one JSON object a record."""

    @model_validator(mode="after")
    def _stays_here(self) -> WatchConfig:
        for key, address in (("status_address", self.status_address), ("metrics_address", self.metrics_address)):
            if address is not None and not self.beyond_loopback and not is_loopback(host_and_port(address)[0]):
                raise ValueError(
                    f'{key} = "{address}" can be reached from other machines, by anybody: use 127.0.0.1, '
                    "or say beyond_loopback = true"
                )
        return self
