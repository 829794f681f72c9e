"""The config of a run: one TOML file, checked at once, written back resolved.

Every key of a run is on this page, so that a reader sees them side by side and the command line need not import
torch to refuse a typing error. Units stand in the names. `load` reads a file and overrides, `Config.digest` is
what the members of a run compare before they train together.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import math
import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from comms.multiaddress import NOWHERE, all_loopback, listen_host, peer_of
from dist_train.rates import bits_per_second, latency_s, line_of, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


class ConfigError(ValueError):
    """The config, or an override of it, cannot be used. The message is one line: value, rule and remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _identifier(value: str) -> str:
    if (
        not value
        or len(value) > 64
        or not all((c.isalnum() and c.isascii()) or c in "-_." for c in value)
        or value[0] in "-."
    ):
        raise ValueError("use 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter, a digit or '_'")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%\[\]-]*", value):
        raise ValueError('a host is a name or an address, as ssh takes it: "gpu1", "user@192.0.2.7"')
    return value


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a text of one line is wanted")
    return value


def _slurm_option(value: str) -> str:
    if not re.fullmatch(r"--[a-z][a-z0-9-]*(=[^\s]+)?", value):
        raise ValueError('an option of sbatch is written --name or --name=value, without spaces: "--time=04:00:00"')
    return value


Identifier = Annotated[str, AfterValidator(_identifier)]
Host = Annotated[str, AfterValidator(_host)]
OneLine = Annotated[str, AfterValidator(_one_line)]
SlurmOption = Annotated[str, AfterValidator(_slurm_option)]


def _readable_by(parse: Callable[[str], object]) -> AfterValidator:
    """Keeps the text as it was written, if `parse` can read it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


RateText = Annotated[str, _readable_by(bits_per_second)]
LineText = Annotated[str, _readable_by(line_of)]
LatencyText = Annotated[str, _readable_by(latency_s)]
PeerText = Annotated[str, _readable_by(peer_of)]
ListenText = Annotated[str, _readable_by(listen_host)]
TimeText = Annotated[str, _readable_by(seconds)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]


class RunConfig(_Section):
    """[run]: which run this is."""

    name: Identifier = "run"
    """Name of the run; members of one run agree on it."""
    directory: str = "runs/run"
    """Where the run keeps its config, checkpoints, ledger and logs."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds the initial parameters, the shuffle and the validation split."""


class ModelConfig(_Section):
    """[model]: a Llama built from these numbers, or any causal Hugging Face config under `path`."""

    path: str | None = None
    """A local Hugging Face directory; its config.json decides the architecture and the keys below are not read."""
    hidden_size: int = Field(default=256, ge=1)
    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=8, ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads; as many as `heads` when left out."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width of the gated MLP; 8/3 of `hidden_size`, rounded up to a multiple of 32, when left out."""
    vocab_size: int = Field(default=256, ge=2)
    rope_theta: float = Field(default=10_000.0, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.path is None:
            if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
                raise ValueError(
                    f"heads = {self.heads} does not cut hidden_size = {self.hidden_size} into heads of an even size; "
                    f"try heads = {_nearest_heads(self.hidden_size, self.heads)}"
                )
            if self.heads % (self.kv_heads or self.heads):
                raise ValueError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        return self


def _nearest_heads(hidden_size: int, heads: int) -> int:
    fitting = [n for n in range(1, hidden_size // 2 + 1) if hidden_size % n == 0 and (hidden_size // n) % 2 == 0]
    return min(fitting or [1], key=lambda n: abs(n - heads))


class DataConfig(_Section):
    """[data]: which documents, how they become tokens, and what is held back for validation."""

    source: str = "python-stdlib"
    """`python-stdlib`, or `text:GLOB`, `jsonl:GLOB`, `parquet:GLOB`, `bin:GLOB`, `npy:GLOB`."""
    tokenizer: str = "bytes"
    """`bytes` (256 tokens), or a local Hugging Face tokenizer directory."""
    sequence_tokens: int = Field(default=512, ge=2)
    """Longest sequence that is trained as a whole; longer documents are cut in pieces of this many tokens."""
    text_field: str = "text"
    """The field of a JSONL object, or the Parquet column, that holds a document's text."""
    token_dtype: Literal["uint8", "uint16", "uint32"] = "uint16"
    """The type of one token in `bin:` shards (little-endian)."""
    document_separator: int | None = Field(default=None, ge=0)
    """The token that ends each document in `bin:` and `npy:` shards; a shard is one document when left out."""
    validation_fraction: float = Field(default=0.02, gt=0.0, lt=1.0)
    """Share of the documents that is never trained on."""
    validation_tokens: int = Field(default=65_536, ge=2)
    """At most so many tokens of the validation documents are evaluated each time."""


class InnerConfig(_Section):
    """[inner]: what a replica does by itself between two exchanges."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` trains matrices inside the layers with Muon and everything else with AdamW."""
    lr: float = Field(default=1e-3, gt=0)
    steps: int = Field(default=15, ge=1)
    """H: inner steps in an outer round (`outer.method = "ddp"` exchanges after every one)."""
    seconds: Seconds | None = None
    """A replica takes as many inner steps as fit in so many seconds, at least one and at most `steps`, and weighs as
    much as the tokens that it got through. All take `steps` when left out."""
    batch_tokens: int = Field(default=8192, ge=2)
    """Tokens of one inner step of one replica."""
    micro_batch_tokens: int | None = Field(default=None, ge=2)
    """Most tokens in one forward pass, to fit the device's memory; the whole batch when left out."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    muon_lr: float = Field(default=0.02, gt=0)
    """Learning rate of the matrices under `optimizer = "muon"`."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""
    warmup_steps: int = Field(default=0, ge=0)
    """Inner steps of linear warm-up, counted over the whole run."""
    final_lr_fraction: Fraction = 0.1
    """Where the cosine ends, as a share of `lr`."""


NOT_SHARED = (
    *("pipeline", "security", "discovery", "sequence", "launch", "ssh", "slurm", "kubernetes", "watch"),
    *("replica", "link", "simulate", "device", "plan", "prices"),
)
"""Sections that say where and how something runs, or foretell it: members of one run may differ in them."""
COORDINATORS_OWN = ("most_replicas", "most_faults")
"""Keys of [exchange] that may differ from launch to launch, and that nobody but the coordinator reads."""
Method = Literal["sparseloco", "diloco", "ddp"]


class OuterConfig(_Section):
    """[outer]: how the replicas' work becomes one model."""

    method: Method = "sparseloco"
    lr: float | None = Field(default=None, gt=0)
    """alpha. When left out: 1.0 for sparseloco, 0.7 for diloco. ddp has none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum of diloco's outer step; the others have none."""
    dense_values: Literal["fp32", "bf16", "int8"] = "fp32"
    """How diloco and ddp send a value."""
    rounds: int = Field(default=40, ge=1)
    """Outer rounds of H inner steps. ddp takes as many inner steps in all, and exchanges after each."""
    guard: Literal["median-norm", "off"] = "median-norm"
    """`median-norm` scales a contribution above the round's median norm down to it before it is averaged."""
    validate_every: int = Field(default=1, ge=1)
    """Outer rounds between two evaluations on the validation documents; the last round is always evaluated."""


class SparseLoCoConfig(_Section):
    """[sparseloco]: what of the pseudo-gradient is sent."""

    chunk: int = Field(default=4096, ge=4, le=65_536)
    """C: a matrix is cut in square blocks of so many values, a vector in runs of so many."""
    k: int = Field(default=64, ge=1)
    """Values sent of each chunk."""
    value_bits: Literal[1, 2, 32] = 2
    """Bits of one sent value: sign, sign and magnitude, or fp32."""
    quantizer: Literal["sign-magnitude", "statistical"] = "sign-magnitude"
    """`statistical` is the published reference's codebook, for parity."""
    chunking: Literal["padded", "divisor"] = "padded"
    """`divisor` shrinks blocks to divisors of a tensor's dimensions, like the published reference, for parity."""
    error_decay: Fraction = 0.95
    """beta: what the error feedback keeps from round to round."""
    aggregate: Literal["mean", "contributors", "weighted"] = "contributors"
    """Divide by the replicas, by those that sent the coordinate, or weight by the tokens trained."""

    @model_validator(mode="after")
    def _fits(self) -> SparseLoCoConfig:
        if math.isqrt(self.chunk) ** 2 != self.chunk:
            raise ValueError(f"chunk = {self.chunk} is no square, and matrices are cut in square blocks; try 4096")
        if self.k > self.chunk:
            raise ValueError(f"k = {self.k} is more than a chunk holds ({self.chunk}); lower k")
        if self.quantizer == "statistical" and self.value_bits != 2:
            raise ValueError(f'quantizer = "statistical" has two bits, not value_bits = {self.value_bits}')
        return self


class ExchangeConfig(_Section):
    """[exchange]: how payloads and agreement travel, and how long anybody waits."""

    address: str = "127.0.0.1:0"
    """Where the coordinator listens; port 0 takes any free port."""
    route: Literal["direct", "relay"] = "direct"
    """`direct`: replicas serve their own payloads. `relay`: the coordinator stores and forwards; all dial only it."""
    min_replicas: int = Field(default=1, ge=1)
    """A round never commits with fewer contributions."""
    most_replicas: int = Field(default=0, ge=0, le=10_000)
    """So many replicas may take part at once, those of the [[replica]] sections and those that `dist-train join` adds;
    0: nobody can join. The coordinator alone reads it."""
    most_faults: int = Field(default=3, ge=1)
    """A replica whose payloads were broken, or whose parameters were damaged, so often is expelled. Launching again
    with more pardons it. The coordinator alone reads it."""
    most_replayed_rounds: int = Field(default=20, ge=0)
    """A replica that is further behind begins with a snapshot of the others' parameters, and with no error feedback."""
    work_deadline_s: Seconds = 3600.0
    """How long a round waits for a report that it can't do without."""
    gather_deadline_s: Seconds = 300.0
    """How long a starting (or restarted) coordinator waits for all replicas before it goes on with those present."""
    publish_deadline_s: Seconds = 60.0
    """How long a round waits for the others once the first replica has reported."""
    fetch_deadline_s: Seconds = 60.0
    """How long a replica may take to fetch the payloads of a round and acknowledge them."""
    heartbeat_s: Seconds = 2.0
    """A replica says that it lives this often."""
    liveness_deadline_s: Seconds = 15.0
    """A replica silent for so long is taken for dead."""
    reconnect_deadline_s: Seconds = 5.0
    """A replica whose connection broke is taken for dead after so long, unless it is back."""
    outage_deadline_s: Seconds = 120.0
    """How long a replica tries to reach a coordinator that is gone."""
    most_payload_bytes: int = Field(default=4 * 2**30, ge=4096)
    """Most payload bytes of one replica in one round, all fragments together. What is above it is refused."""

    @model_validator(mode="after")
    def _inner_below_outer(self) -> ExchangeConfig:
        if self.heartbeat_s * 2 >= self.liveness_deadline_s:
            raise ValueError(
                f"heartbeat_s = {self.heartbeat_s:g} must be less than half of "
                f"liveness_deadline_s = {self.liveness_deadline_s:g}"
            )
        if self.reconnect_deadline_s > self.liveness_deadline_s:
            raise ValueError(
                f"reconnect_deadline_s = {self.reconnect_deadline_s:g} must not be above "
                f"liveness_deadline_s = {self.liveness_deadline_s:g}"
            )
        if self.liveness_deadline_s > self.gather_deadline_s:
            raise ValueError(
                f"liveness_deadline_s = {self.liveness_deadline_s:g} must not be above "
                f"gather_deadline_s = {self.gather_deadline_s:g}"
            )
        return self


class PipelineConfig(_Section):
    """[pipeline]: how long the stages of a replica wait for each other, and how much they keep meanwhile."""

    transfer_deadline_s: Seconds = 300.0
    """For each single tensor that one stage waits for; the other may be computing, or starting, meanwhile."""
    outage_deadline_s: Seconds = 20.0
    """How long a broken connection between two stages may take to come back."""
    buffer_bytes: int = Field(default=64 * 2**20, ge=2**16, le=2**36)
    """For each pair of stages and direction: copies at the sender, and what nobody waits for yet at the receiver."""


class SecurityConfig(_Section):
    """[security]: who may take part, and who may listen in. See docs/security.md."""

    mode: Literal["loopback", "tls", "insecure"] = "loopback"
    """`loopback` sends plain text and never leaves this machine; `tls` wants certificates of everybody; `insecure` says
    that plain text may leave this machine."""
    certificates: str = "certs"
    """Under `tls`: where this machine keeps the certificates and keys of its members. `dist-train certs` makes them."""
    token_file: str | None = None
    """Under `tls`: the file with the secret that a replica must know to join; CERTIFICATES/run.token when left out."""


def _planner(value: str) -> str:
    name, colon, degree = value.partition(":")
    if value in ("off", "adaptive", "best-homogeneous") or (name == "static" and colon and degree.isdecimal()):
        return value
    raise ValueError("choose adaptive, best-homogeneous, static:D with a degree D, or off")


class SequenceConfig(_Section):
    """[sequence]: how the ranks of one replica (`ranks` above 1) share the documents of a step."""

    planner: Annotated[str, AfterValidator(_planner)] = "adaptive"
    """Who decides which documents are scattered over how many ranks: `adaptive`, for every step anew;
    `best-homogeneous`, one degree a step; `static:4`, that degree always; `off`, every document on one rank."""
    max_tokens_per_rank: int | None = Field(default=None, ge=1)
    """Tokens that one rank holds in a forward pass at most; a quarter more than its even share when left out."""
    plan_deadline_s: Seconds | None = 1.0
    """How long a step waits for its plan before it runs by a simpler one. Longer where resumed steps must repeat bit
    for bit: another plan adds the same numbers in another order."""


class DiscoveryConfig(_Section):
    """[discovery]: how members find each other by the run's name, without a fixed address. See docs/discovery.md."""

    bootstrap: tuple[PeerText, ...] = ()
    """Nodes of the DHT to begin with, such as "/ip4/192.0.2.1/tcp/7100/p2p/12D3..."; any of them will do. None: there
    is no discovery, unless `listen` says that this member begins a DHT."""
    listen: ListenText | None = None
    """Where this member's node listens, such as "/ip4/0.0.0.0/tcp/7100"; "none" only dials out. When left out: any port
    of this machine's, but nowhere for a replica under `exchange.route = "relay"`."""
    advertise: str | None = None
    """HOST:PORT at which others reach the coordinator, where that is not where it listens: a forwarded port."""
    record_s: Seconds = Field(default=60.0, ge=3.0, le=3600.0)
    """How long an address is good for after its member was last heard of; it is renewed three times as often."""

    @property
    def is_on(self) -> bool:
        """Whether members look for each other at all."""
        return bool(self.bootstrap) or self.listen is not None


class CheckpointConfig(_Section):
    """[checkpoint]: how often a replica can be resumed from, and how far back."""

    every_rounds: int = Field(default=1, ge=1)
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept; older ones are deleted after a newer one is whole."""


class LaunchConfig(_Section):
    """[launch]: who starts the processes of the run, and how they are looked after. See docs/launch.md."""

    backend: Literal["local", "ssh", "slurm", "kubernetes"] | None = None
    """When left out: `ssh` if a replica names a host, else `local`. `local` with hosts starts all on this machine."""
    restarts: int = Field(default=3, ge=0)
    """How often a replica that has died is started again; it catches up by itself."""
    lost_host_deadline_s: Seconds = 3600.0
    """How long a host that can't be reached is awaited (`ssh`); the run goes on without it, and it joins again."""


class SshConfig(_Section):
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


class SlurmConfig(_Section):
    """[slurm]: what the job asks for (`launch.backend = "slurm"`); it has a task for each replica, or stage of one."""

    options: tuple[SlurmOption, ...] = ()
    """Of sbatch: `["--partition=gpu", "--time=04:00:00", "--gpus-per-task=1"]`."""
    setup: tuple[OneLine, ...] = ()
    """Lines of shell before the tasks are started: `["module load cuda"]`."""
    python: OneLine | None = None
    """The interpreter on the nodes; the one of the launcher when left out."""


class KubernetesConfig(_Section):
    """[kubernetes]: what the pods are made of (`launch.backend = "kubernetes"`)."""

    image: OneLine | None = None
    """A container image with dist-train installed."""
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "default"
    python: OneLine = "python3"
    """The interpreter in the image."""
    cpu: OneLine = "2"
    """Cores that each replica's pod asks for."""
    memory: OneLine = "8Gi"
    """Memory that each replica's pod asks for and may have."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of each replica's pod."""
    gpu_resource: OneLine = "nvidia.com/gpu"
    storage: OneLine | None = "20Gi"
    """Of the volume in which each replica, and the coordinator, keeps the run; none, and it goes with the pod, when
    empty."""
    storage_class: OneLine | None = None
    port: int = Field(default=7000, ge=1, le=65_535)
    """Where the coordinator listens."""


def _page_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("give it as host:port; port 0 takes any free port")
    return value


PageAddress = Annotated[str, AfterValidator(_page_address)]


class WatchConfig(_Section):
    """[watch]: what may be looked at while the run goes on. Nothing unless a key is given; see docs/watching.md."""

    status_address: PageAddress | None = None
    """Where the coordinator serves a page that shows how the run stands, such as "127.0.0.1:9390"."""
    metrics_address: PageAddress | None = None
    """Where the coordinator serves /metrics for Prometheus; the n-th rank of all [[replica]] does so n ports above."""
    beyond_loopback: bool = False
    """Whether those two may be addresses that other machines reach; they show names, addresses and loss to anybody."""
    tensorboard: str | None = None
    """A folder into which the coordinator writes TensorBoard scalars as rounds are committed."""
    log_format: Literal["text", "json"] = "text"
    """How members write their logs: lines for people, or one JSON object a record."""

    @model_validator(mode="after")
    def _stays_here(self) -> WatchConfig:
        for key, address in (("status_address", self.status_address), ("metrics_address", self.metrics_address)):
            if address is not None and not self.beyond_loopback and not _is_loopback(address.rpartition(":")[0]):
                raise ValueError(
                    f'{key} = "{address}" can be reached from other machines, by anybody: use 127.0.0.1, '
                    "or say beyond_loopback = true"
                )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class ReplicaConfig(_Section):
    """[[replica]]: one full copy of the model being trained."""

    id: Identifier
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""
    ranks: int = Field(default=1, ge=1, le=1024)
    """Processes that share the work of this replica on one machine."""
    shard: bool = False
    """Whether its ranks hold the model and the inner optimizer in shards (FSDP2), instead of whole on each."""
    pipeline: tuple[Identifier, ...] = ()
    """The machines that make up this replica, one stage each, the embedding's first; none: one machine has it all."""
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


class LinkConfig(_Section):
    """[[link]]: the way between two members, where it is not like all others. `dist-train simulate` enforces it."""

    between: tuple[Identifier, Identifier]
    """Two replicas, or one and "coordinator"."""
    one_way: bool = False
    """Only from the first to the second; both ways when left out."""
    rate: RateText | None = None
    """Such as "50mbit", in each direction; the members' own lines are the only limit when left out."""
    latency: LatencyText | None = None
    """Such as "40ms", each way: an answer takes twice that. [simulate] has the default."""
    jitter: LatencyText | None = None
    """Most that is added to the latency."""


class ChangeConfig(_Section):
    """[[simulate.change]]: what happens to links while the run goes on."""

    round: int | None = Field(default=None, ge=1)
    """When this round begins."""
    after: TimeText | None = None
    """Or so long after the start, such as "60s"."""
    lasts: TimeText | None = None
    """After so long all is as before; for good when left out."""
    between: tuple[Identifier, Identifier] | None = None
    """The path between two members."""
    one_way: bool = False
    member: Identifier | None = None
    """Or a member: its line, and the paths to and from it."""
    rate: RateText | None = None
    """The path's new rate."""
    line: LineText | None = None
    """The member's new line."""
    latency: LatencyText | None = None
    jitter: LatencyText | None = None
    partition: bool = False
    """Nothing gets through."""

    @model_validator(mode="after")
    def _says_when_where_and_what(self) -> ChangeConfig:
        if (self.round is None) == (self.after is None):
            raise ValueError('a change needs either round = 3 or after = "60s"')
        if (self.between is None) == (self.member is None):
            raise ValueError('a change needs either between = ["a", "b"] or member = "a"')
        if self.rate is not None and self.between is None:
            raise ValueError('rate is of a path between two; a member has a line = "10mbit/50mbit"')
        if self.line is not None and self.member is None:
            raise ValueError('line is of a member; a path between two has a rate = "10mbit"')
        if not (self.partition or self.rate or self.line or self.latency or self.jitter):
            raise ValueError("a change changes something: rate, line, latency, jitter or partition = true")
        return self


class SimulateConfig(_Section):
    """[simulate]: the links that `dist-train simulate` rehearses the run on. Nothing else reads it."""

    enforce: Literal["auto", "kernel", "token-bucket"] = "auto"
    """`kernel` needs Linux and root; `token-bucket` works everywhere; `auto` takes the kernel where it can."""
    line: LineText | None = None
    """Each member's line: "50mbit" both ways, "10mbit/50mbit" up/down."""
    latency: LatencyText | None = None
    """Of each path, each way."""
    jitter: LatencyText | None = None
    lines: dict[Identifier, LineText] = {}
    """Lines of single members, the coordinator among them."""
    change: tuple[ChangeConfig, ...] = ()


def _line(text: str) -> str:
    line_of(text)
    return text


def _latency(text: str) -> str:
    latency_s(text)
    return text


class DeviceConfig(_Section):
    """[[device]]: what `dist-train plan` should believe of a machine. Nothing else reads it."""

    name: Identifier
    """A replica's id, a member of its pipeline, or what `plan.device` names; others are placed by the plan."""
    tflops: float | None = Field(default=None, gt=0)
    """10^12 operations a second reached in training, all accelerators of the machine together; see `plan --measure`."""
    memory_bytes: float | None = Field(default=None, gt=0)
    """Memory of the accelerators (or of the machine, where it trains on its processor)."""
    line: Annotated[str, AfterValidator(_line)] | None = None
    """Its way into the internet: "50mbit" both ways, "10mbit/50mbit" up/down."""
    latency: Annotated[str, AfterValidator(_latency)] | None = None
    """To the others, each way: "40ms"."""
    encode_parameters_per_s: float | None = Field(default=None, gt=0)
    """Parameters that its codec encodes in a second."""
    decode_parameters_per_s: float | None = Field(default=None, gt=0)
    """Parameters of one payload that its codec decodes and adds up in a second."""
    apply_parameters_per_s: float | None = Field(default=None, gt=0)
    """Parameters that take the outer step, and are digested, in a second."""
    count: int = Field(default=1, ge=1)
    """So many machines like this one, called NAME-1, NAME-2, …, when above 1."""


class PlanConfig(_Section):
    """[plan]: what `dist-train plan` assumes. Nothing else reads it."""

    replicas: int | None = Field(default=None, ge=1)
    """So many replicas like the first one, instead of the [[replica]] sections."""
    device: Identifier | None = None
    """The [[device]] that replicas are which name none."""
    coordinator: Identifier | None = None
    """The [[device]] that stores and forwards under `exchange.route = "relay"`; without limits when left out."""
    bits_per_value: float | None = Field(default=None, gt=0)
    """Bits of a sent value, place included, instead of our codec's: 14 is the published count."""
    useful_utilisation: Fraction = 0.9
    """Share of the time spent computing below which the plan says what to change."""


class PricesConfig(_Section):
    """[prices]: for the plan's costs."""

    device_hour: float = Field(default=0.0, ge=0)
    """One [[device]] for an hour."""
    sent_gigabyte: float = Field(default=0.0, ge=0)
    """10^9 bytes leaving a machine."""
    currency: str = "USD"


class Config(_Section):
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
    def _sections_agree(self) -> Config:
        ids = [replica.id for replica in self.replica]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f'replica.id = "{twice[0]}" is given twice; ids are unique')
        if taken := sorted({"ca", "operator"}.intersection(ids)):
            raise ValueError(f'replica.id = "{taken[0]}" is a name that certificates need for another; choose another')
        if self.security.token_file is not None and self.security.mode != "tls":
            raise ValueError(
                f'security.token_file does nothing under security.mode = "{self.security.mode}"; '
                'say "tls", or leave it out'
            )
        self._check_discovery()
        processes = [name for replica in self.replica for name in (replica.pipeline or (replica.id,))]
        if shared := sorted({name for name in processes if processes.count(name) > 1}):
            raise ValueError(f'"{shared[0]}" is the name of two machines in [[replica]]; give each its own')
        most_replicas = self.exchange.most_replicas
        if self.exchange.min_replicas > max(len(ids), most_replicas):
            raise ValueError(
                f"exchange.min_replicas = {self.exchange.min_replicas} is more than the {len(ids)} [[replica]] sections"
            )
        if 0 < most_replicas < len(ids):
            raise ValueError(
                f"exchange.most_replicas = {most_replicas} is less than the {len(ids)} [[replica]] sections; "
                "raise it, or leave it out"
            )
        if self.inner.seconds is not None:
            self._check_windows(self.inner.seconds)
        if self.inner.batch_tokens < self.data.sequence_tokens:
            raise ValueError(
                f"inner.batch_tokens = {self.inner.batch_tokens} is less than one sequence "
                f"(data.sequence_tokens = {self.data.sequence_tokens}); raise it or shorten the sequences"
            )
        if self.inner.micro_batch_tokens is not None and self.inner.micro_batch_tokens < self.data.sequence_tokens:
            raise ValueError(
                f"inner.micro_batch_tokens = {self.inner.micro_batch_tokens} is less than one sequence "
                f"(data.sequence_tokens = {self.data.sequence_tokens}); raise it or shorten the sequences"
            )
        for replica in self.replica:
            if replica.pipeline:
                self._check_pipeline(replica)
            if replica.shard:
                self._check_shards(replica)
        return self

    def _check_shards(self, replica: ReplicaConfig) -> None:
        if replica.ranks == 1:
            raise ValueError(f'replica "{replica.id}": shard = true needs ranks above 1; one rank has all there is')
        if self.outer.method == "ddp" or self.inner.optimizer == "muon" or self.sequence.planner == "off":
            raise ValueError(
                f'replica "{replica.id}": shard = true goes with outer.method = "sparseloco" or "diloco", '
                f'inner.optimizer = "adamw" and a sequence.planner; leave it out with "{self.outer.method}", '
                f'"{self.inner.optimizer}", "{self.sequence.planner}"'
            )

    def _check_discovery(self) -> None:
        discovery = self.discovery
        if self.security.mode == "loopback" and not all_loopback(discovery.bootstrap, discovery.listen):
            raise ValueError(
                'security.mode = "loopback" never leaves this machine, and [discovery] names another: say '
                '/ip4/127.0.0.1/..., or security.mode = "tls"'
            )
        if not discovery.bootstrap and discovery.listen == NOWHERE:
            raise ValueError('discovery.listen = "none" has nobody to ask: name bootstrap peers, or leave it out')

    def _check_pipeline(self, replica: ReplicaConfig) -> None:
        place, method = f'replica "{replica.id}"', self.outer.method
        if replica.compression != "none" and method == "ddp":
            raise ValueError(
                f'{place}: compression = "{replica.compression}" cannot be trained with outer.method = "ddp", whose '
                f'replicas have equal weights after every step; choose "sparseloco", "diloco" or compression = "none"'
            )
        if self.model.path is not None:
            return  # the layers and the width are known once the model's own config has been read
        layers, stages = self.model.layers, len(replica.pipeline)
        if replica.split is None and stages > layers:
            raise ValueError(
                f"{place}: pipeline has {stages} stages for {layers} layers, and a stage must have one; name fewer"
            )
        if replica.split is not None and sum(replica.split) != layers:
            raise ValueError(
                f"{place}: split = {list(replica.split)} adds up to {sum(replica.split)}, not to "
                f"model.layers = {layers}"
            )
        if replica.rank_k is not None and replica.rank_k > self.model.hidden_size:
            raise ValueError(
                f"{place}: rank_k = {replica.rank_k} is above model.hidden_size = {self.model.hidden_size}; lower it"
            )

    def _check_windows(self, seconds: float) -> None:
        if self.outer.method == "ddp":
            raise ValueError(f"inner.seconds = {seconds:g} does nothing under ddp, which exchanges after every step")
        if self.outer.method == "sparseloco" and self.sparseloco.aggregate != "weighted":
            raise ValueError(
                f"inner.seconds = {seconds:g} makes contributions of unequal tokens; "
                'weigh them: sparseloco.aggregate = "weighted"'
            )
        if seconds >= self.exchange.work_deadline_s:
            raise ValueError(
                f"inner.seconds = {seconds:g} must be less than exchange.work_deadline_s = "
                f"{self.exchange.work_deadline_s:g}"
            )

    @model_validator(mode="after")
    def _links_join_members(self) -> Config:
        known = {"coordinator"}.union(*(replica.pipeline or (replica.id,) for replica in self.replica))
        changes = self.simulate.change
        pairs = [link.between for link in self.link] + [c.between for c in changes if c.between is not None]
        named = [
            *self.simulate.lines,
            *(c.member for c in changes if c.member),
            *(name for pair in pairs for name in pair),
        ]
        if strangers := [name for name in named if name not in known]:
            raise ValueError(f'a link names "{strangers[0]}", which is none of {", ".join(sorted(known))}')
        if loops := [pair[0] for pair in pairs if pair[0] == pair[1]]:
            raise ValueError(f'a link joins two members, and this one joins "{loops[0]}" with itself')
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
        shared = self.model_dump(mode="json")
        del shared["run"]["directory"], shared["exchange"]["address"]
        for section in NOT_SHARED:
            del shared[section]
        for key in COORDINATORS_OWN:
            del shared["exchange"][key]
        return shared

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


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The config in the TOML file `path`, with `section.key=value` overrides applied; ConfigError in one line."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    for override in overrides:
        _apply_override(document, override)
    return parse(document, origin=str(path))


def parse(document: Mapping[str, Any], origin: str = "config") -> Config:
    """The config of a parsed TOML document; ConfigError names the first offending key."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error)}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    table = document.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"override {override!r}: [[{section}]] is a list; edit it in the file")
    try:
        table[name] = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        table[name] = text  # a bare word is a string: outer.method=ddp


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "config"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.4)
        return f"unknown key {place}; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}")
    if problem["type"] == "value_error":
        return f"{place}: {message}" if problem["loc"] else message
    if problem["type"] == "missing":
        return f"{place} is missing; give it a value"
    return f"{place} = {problem['input']!r}: {message[:1].lower()}{message[1:]}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(
                t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
            )
    return list(model.model_fields)
