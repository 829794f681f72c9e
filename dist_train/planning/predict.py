"""The plan of a run: bytes, memory and seconds of every replica and link, from closed forms alone.

Nothing here loops over replicas: they are counted in groups that are alike, so that one or ten thousand cost the same.
Bytes come from where the report has its predictions: the codec's `num_bytes`, `comms.payloads.stream_bytes`,
`report.traffic.predicted_exchange_bytes`, and `baselines`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from comms.payloads import CALL_BYTES, stream_bytes
from comms.virtual_network import framed_bytes
from compression.registry import codec_for
from dist_train import baselines
from dist_train.config import Config
from dist_train.planning.advice import problems_of
from dist_train.planning.architecture import Architecture, architecture_of, num_values
from dist_train.planning.contents import (
    BaselinesPart,
    CostPart,
    CrossoverPart,
    LinkPart,
    ModelPart,
    PayloadPart,
    Plan,
    ReplicaPart,
    StagePart,
    TrafficPart,
)
from dist_train.planning.crossover import aggregate_bytes, all_gather_bytes, crossover_replicas
from dist_train.planning.machines import Crew, Group, Machine, crew_of, network_of
from dist_train.planning.memory import stage_memory, workload_of
from dist_train.planning.round_seconds import Exchange, Speed, phase_seconds
from dist_train.planning.stages import Workload
from dist_train.rates import latency_s, line_of
from dist_train.report.traffic import PSEUDO_GRADIENT, predicted_exchange_bytes

PUBLISHED_BITS_PER_VALUE = 12 + 2
DAY_S = 86_400
ACTIVATION_BYTES = {"cpu": 4, "cuda": 2}
RELAY = "relay"


@dataclass(frozen=True)
class Measured:
    """What a short measurement on this machine found (`planning.measure`)."""

    device: str
    layer_s: float
    """One layer, forward and backward, on one micro-batch."""
    head_s: float
    """The same of embedding, head and loss."""
    memory_bytes: float
    encode_parameters_per_s: float
    decode_parameters_per_s: float


@dataclass(frozen=True)
class Assumptions:
    """What the command line says beside the config."""

    replicas: int | None = None
    line: str | None = None
    """Of all machines, over what the config says: "50mbit", "10mbit/50mbit"."""
    latency: str | None = None
    bits_per_value: float | None = None
    measured: Measured | None = None


@dataclass(frozen=True)
class Payload:
    """One contribution, fragment by fragment."""

    sizes_bytes: tuple[int, ...]
    codec_bytes: int
    first_round_bytes: int
    values: int


@dataclass(frozen=True)
class _Run:
    """What all replicas of a plan have in common."""

    config: Config
    architecture: Architecture
    work: Workload
    payload: Payload
    exchange: Exchange


def predict(config: Config, assumptions: Assumptions = Assumptions()) -> Plan:
    """The plan of `config`. ConfigError, one line, where machines cannot hold the model or names do not fit."""
    config = _with_line(config, assumptions)
    architecture = architecture_of(config.model)
    work, default = _calibrated(config, architecture, assumptions)
    crew = crew_of(config, work, default, assumptions.replicas or config.plan.replicas)
    bits_per_value = assumptions.bits_per_value or config.plan.bits_per_value
    payload = payload_of(config, architecture, bits_per_value)
    count = sum(group.count for group in crew.groups)
    exchange = _exchange(config, architecture, crew, payload, count)
    run = _Run(config, architecture, work, payload, exchange)
    groups = [_replica(run, group) for group in crew.groups]
    overlap = bool(getattr(config.exchange, "overlap", False))
    own_s = [group.phases.round_s(overlap=overlap) for group in groups]
    round_s = None if None in own_s else max(s for s in own_s if s is not None)
    groups = [_in_round(config, group, own, round_s) for group, own in zip(groups, own_s, strict=True)]
    tokens = count * config.steps_per_round * config.inner.batch_tokens
    plan = Plan(
        run=config.run.name,
        method=config.outer.method,
        config_digest=config.digest(),
        model=ModelPart(
            name=_model_name(config, architecture),
            parameters=architecture.parameters,
            flops_per_token=architecture.flops_per_token(config.data.sequence_tokens),
        ),
        replicas=count,
        rounds=config.rounds,
        tokens_per_round=tokens,
        calibration=_calibration(crew, assumptions),
        payload=_payload_part(config, architecture, payload, bits_per_value),
        traffic=_traffic(config, crew.groups, work, exchange, payload),
        baselines=_baselines(config, architecture, payload, count),
        groups=tuple(groups),
        idle_devices=crew.idle,
        placed=crew.placed,
        round_s=round_s,
        run_s=None if round_s is None else round_s * config.rounds,
        utilisation=_utilisation(groups, count),
        tokens_per_s=tokens / round_s if round_s else None,
        tokens_per_day=tokens / round_s * DAY_S if round_s else None,
        crossover=_crossover(config, architecture, payload, count),
        cost=_cost(config, crew, groups, tokens, round_s),
        problems=(),
    )
    return plan.model_copy(update={"problems": problems_of(config, plan)})


def payload_of(config: Config, architecture: Architecture, bits_per_value: float | None) -> Payload:
    """Sizes by the codec, or by `bits_per_value` alone."""
    sparse, outer = config.sparseloco, config.outer
    codec = codec_for(
        outer.method,
        dense_values=outer.dense_values,
        chunk=sparse.chunk,
        k=sparse.k,
        value_bits=sparse.value_bits,
        quantizer=sparse.quantizer,
        chunking=sparse.chunking,
    )
    known: dict[str, tuple[int, int, int]] = {}
    parts = []
    for fragment, shapes in architecture.fragment_shapes().items():
        kind = fragment.partition(".")[0]  # layers are alike
        if kind not in known:
            layout = codec.layout(shapes)
            known[kind] = (codec.num_values(layout), codec.num_bytes(layout), codec.num_bytes(layout, 1))
        parts.append(known[kind])
    codec_sizes = tuple(size for _, size, _ in parts)
    sizes = codec_sizes
    if bits_per_value is not None:
        sizes = tuple(math.ceil(values * bits_per_value / 8) for values, _, _ in parts)
    return Payload(sizes, sum(codec_sizes), sum(first for _, _, first in parts), sum(values for values, _, _ in parts))


def _with_line(config: Config, assumptions: Assumptions) -> Config:
    """`config` with the command line's rates in place of its own."""
    changes = {key: value for key in ("line", "latency") if (value := getattr(assumptions, key)) is not None}
    return config.model_copy(update={"device": tuple(d.model_copy(update=changes) for d in config.device)})


def _calibrated(config: Config, architecture: Architecture, assumptions: Assumptions) -> tuple[Workload, Machine]:
    """The work in units of the measured device, and the machine that stands for those of which nothing is said."""
    measured = assumptions.measured
    simulated = getattr(config, "simulate", None)
    line_text = assumptions.line or getattr(simulated, "line", None)
    latency_text = assumptions.latency or getattr(simulated, "latency", None)
    line = line_of(line_text) if line_text else None
    kind = "cpu" if measured is None or measured.device == "cpu" else "cuda"
    if measured is None and config.device:
        kind = "cuda"
    work = workload_of(config, architecture, activation_bytes=ACTIVATION_BYTES[kind], value_bytes=2.0)
    machine = Machine(
        name="this machine" if measured else "unknown",
        flops_per_s=None,
        up_bits_per_second=(line.up_bits_per_second or math.inf) if line else math.inf,
        down_bits_per_second=(line.down_bits_per_second or math.inf) if line else math.inf,
        latency_s=latency_s(latency_text) if latency_text else 0.0,
    )
    if measured is None:
        return work, machine
    flops_per_s = work.layer_flops / measured.layer_s
    machine = replace(
        machine,
        flops_per_s=flops_per_s,
        memory_bytes=measured.memory_bytes,
        encode_parameters_per_s=measured.encode_parameters_per_s,
        decode_parameters_per_s=measured.decode_parameters_per_s,
    )
    return replace(work, head_flops=measured.head_s * flops_per_s), machine


def _calibration(crew: Crew, assumptions: Assumptions) -> str:
    if assumptions.measured is not None:
        return f"measured on this machine ({assumptions.measured.device})"
    if all(group.knows_speed for group in crew.groups):
        return "the config's [[device]] figures"
    return "none: add --measure, or [[device]] sections with tflops"


def _model_name(config: Config, architecture: Architecture) -> str:
    if config.model.path is not None:
        return Path(config.model.path).name
    return f"llama-{architecture.hidden_size}x{architecture.layers}"


def _exchange(config: Config, architecture: Architecture, crew: Crew, payload: Payload, count: int) -> Exchange:
    relayed = config.exchange.route == RELAY
    relay = next((d for d in config.device if d.name == config.plan.coordinator), None)
    relay_line = line_of(relay.line) if relay is not None and relay.line is not None else None
    return Exchange(
        replicas=count,
        parameters=architecture.parameters,
        get_bytes=sum(stream_bytes(size, "get") for size in payload.sizes_bytes),
        line_bytes=_line_bytes(payload, "get"),
        put_line_bytes=_line_bytes(payload, "put") if relayed else 0,
        route=config.exchange.route,
        slowest_up_bits_per_second=min(_speaker(group).up_bits_per_second for group in crew.groups),
        relay_up_bits_per_second=(relay_line.up_bits_per_second or math.inf) if relay_line else math.inf,
    )


def _line_bytes(payload: Payload, call: Literal["get", "put"]) -> int:
    """All of one replica's payloads as a line carries them: frames, packets, requests."""
    return sum(framed_bytes(stream_bytes(size, call)) + CALL_BYTES for size in payload.sizes_bytes)


def _speaker(group: Group) -> Machine:
    """The machine whose line a replica's payloads take: each stage sends its own, so the slowest counts."""
    return min(group.machines, key=lambda machine: machine.up_bits_per_second)


def _replica(run: _Run, group: Group) -> ReplicaPart:
    config, work, exchange, pipeline = run.config, run.work, run.exchange, group.pipeline
    whole = config.inner.batch_tokens / (work.micro_batches * work.micro_batch_tokens)
    machine = _speaker(group)
    speed = Speed(
        step_s=pipeline.step_s * whole if group.knows_speed else None,
        up_bits_per_second=machine.up_bits_per_second,
        down_bits_per_second=min(m.down_bits_per_second for m in group.machines),
        latency_s=max(m.latency_s for m in group.machines),
        encode_parameters_per_s=sum(m.encode_parameters_per_s for m in group.machines),
        decode_parameters_per_s=sum(m.decode_parameters_per_s for m in group.machines),
        apply_parameters_per_s=sum(m.apply_parameters_per_s for m in group.machines),
    )
    phases = phase_seconds(speed, exchange, config.steps_per_round)
    others = exchange.replicas - 1
    relayed = exchange.route == RELAY
    put_bytes = sum(stream_bytes(size, "put") for size in run.payload.sizes_bytes)
    sent = put_bytes if relayed else others * exchange.get_bytes
    links = (*_own_links(group, machine, exchange, sent), *_boundaries(config, work, group))
    return ReplicaPart(
        ids=group.ids,
        count=group.count,
        kind="dense" if len(pipeline.stages) == 1 else "pipeline",
        rank_k=pipeline.rank_k,
        boundary_bound=pipeline.waits_for_links,
        stages=_stages(run, group),
        links=links,
        phases=phases,
        waiting_s=None,
        round_s=None,
        utilisation=None,
        tokens_per_s=None,
        sent_bytes=sent + sum(link.bytes_per_round for link in links[2:]),
        received_bytes=others * exchange.get_bytes + sum(link.bytes_per_round for link in links[2:]),
    )


def _stages(run: _Run, group: Group) -> tuple[StagePart, ...]:
    parts, first_layer = [], 0
    work = run.work
    stages = group.pipeline.stages
    for i, (stage, machine) in enumerate(zip(stages, group.machines, strict=True)):
        memory = stage_memory(
            run.config, run.architecture, work,
            layers=stage.layers, first=i == 0, last=i == len(stages) - 1,
            micro_batches=min(work.micro_batches, len(stages) - i),
            compressed=group.pipeline.rank_k is not None,
            exchanged_bytes=run.exchange.replicas * sum(run.payload.sizes_bytes) // len(stages),
        )  # fmt: skip
        known = math.isfinite(machine.memory_bytes)
        parts.append(
            StagePart(
                device=machine.name,
                layers=stage.layers,
                first_layer=first_layer,
                compute_s=stage.compute_s if group.knows_speed else None,
                memory=memory,
                limit_bytes=machine.memory_bytes if known else None,
                fits=memory.device_bytes <= machine.memory_bytes if known else None,
            )
        )
        first_layer += stage.layers
    return tuple(parts)


def _own_links(group: Group, machine: Machine, exchange: Exchange, sent: int) -> tuple[LinkPart, LinkPart]:
    """A replica's way up, and its way down."""
    far = RELAY if exchange.route == RELAY else "the others"
    up, down = machine.up_bits_per_second, min(m.down_bits_per_second for m in group.machines)
    others, latency = exchange.replicas - 1, max(m.latency_s for m in group.machines)
    line_bytes = others * exchange.line_bytes
    line_sent = exchange.put_line_bytes if exchange.route == RELAY else line_bytes
    return (
        _link(group.ids[0], far, up, latency, sent, line_bytes=line_sent),
        _link(far, group.ids[0], down, latency, others * exchange.get_bytes, line_bytes=line_bytes),
    )


def _link(
    one: str, other: str, bits_per_second: float, latency: float, num_bytes: int, *, line_bytes: int | None = None
) -> LinkPart:
    """`num_bytes` as a report counts them; its seconds are those of `line_bytes`, where they are known."""
    return LinkPart(
        from_=one,
        to=other,
        limit_bits_per_second=bits_per_second if math.isfinite(bits_per_second) else None,
        latency_s=latency,
        bytes_per_round=num_bytes,
        seconds_per_round=8 * (num_bytes if line_bytes is None else line_bytes) / bits_per_second,
    )


def _boundaries(config: Config, work: Workload, group: Group) -> tuple[LinkPart, ...]:
    """The boundaries of a pipeline, both directions together."""
    network = network_of(list(group.machines))
    num_bytes = 2 * boundary_bytes(config, work, group)
    parts = []
    for one, other in zip(group.machines, group.machines[1:], strict=False):
        link = network.link(one.name, other.name)
        parts.append(_link(one.name, other.name, link.bits_per_second, link.latency_s, num_bytes))
    return tuple(parts)


def boundary_bytes(config: Config, work: Workload, group: Group) -> int:
    """What crosses one boundary in one round in each direction: activations, or their gradients. Token ids never do."""
    tokens = config.steps_per_round * config.inner.batch_tokens
    return int(tokens * (group.pipeline.rank_k or work.hidden_size) * group.wire_value_bytes)


def _in_round(config: Config, group: ReplicaPart, own_s: float | None, round_s: float | None) -> ReplicaPart:
    if own_s is None or round_s is None or not round_s:
        return group
    tokens = config.steps_per_round * config.inner.batch_tokens
    compute_s = group.phases.compute_s or 0.0
    return group.model_copy(
        update={
            "round_s": round_s,
            "waiting_s": round_s - own_s,
            "utilisation": compute_s / round_s,
            "tokens_per_s": tokens / round_s,
        }
    )


def _utilisation(groups: list[ReplicaPart], count: int) -> float | None:
    known = [group.utilisation * group.count for group in groups if group.utilisation is not None]
    return sum(known) / count if len(known) == len(groups) else None


def _payload_part(
    config: Config, architecture: Architecture, payload: Payload, bits_per_value: float | None
) -> PayloadPart:
    total = sum(payload.sizes_bytes)
    sparse = config.outer.method == "sparseloco"
    return PayloadPart(
        values=payload.values,
        payload_bytes=total,
        first_round_bytes=payload.first_round_bytes,
        codec_bytes=payload.codec_bytes,
        published_bytes=math.ceil(payload.values * PUBLISHED_BITS_PER_VALUE / 8) if sparse else None,
        assumed_bits_per_value=bits_per_value,
        bits_per_value=8 * total / payload.values,
        bits_per_parameter=8 * total / architecture.parameters,
        ratio_vs_fp32=4 * architecture.parameters / total,
    )


def _traffic(
    config: Config, groups: tuple[Group, ...], work: Workload, exchange: Exchange, payload: Payload
) -> tuple[TrafficPart, ...]:
    exchanged = predicted_exchange_bytes([exchange.replicas], payload.sizes_bytes, config.exchange.route, stream_bytes)
    embed_bytes = stream_bytes(payload.sizes_bytes[0], "get")
    crossing = 0
    for group in groups:
        boundaries = group.count * (len(group.machines) - 1)
        crossing += boundaries * boundary_bytes(config, work, group)
        exchanged += boundaries * (exchange.replicas - 1) * embed_bytes  # which every stage needs
    kinds = ((PSEUDO_GRADIENT, exchanged), ("activation", crossing), ("activation_gradient", crossing))
    return tuple(TrafficPart(kind=kind, sent_bytes=num_bytes) for kind, num_bytes in kinds)


def _baselines(config: Config, architecture: Architecture, payload: Payload, count: int) -> BaselinesPart:
    steps, parameters = config.steps_per_round, architecture.parameters
    sparse = config.outer.method == "sparseloco"
    return BaselinesPart(
        ddp_fp32_bytes=baselines.ddp_bytes([count], steps, parameters, baselines.FP32_BYTES),
        ddp_bf16_bytes=baselines.ddp_bytes([count], steps, parameters, baselines.BF16_BYTES),
        diloco_fp32_bytes=baselines.diloco_bytes([count], parameters, baselines.FP32_BYTES),
        diloco_bf16_bytes=baselines.diloco_bytes([count], parameters, baselines.BF16_BYTES),
        sparseloco_reference_wire_bytes=(
            baselines.sparseloco_reference_wire_bytes([count], payload.values) if sparse else None
        ),
    )


def _crossover(config: Config, architecture: Architecture, payload: Payload, count: int) -> CrossoverPart | None:
    if config.outer.method != "sparseloco":
        return None
    total = sum(payload.sizes_bytes)
    share = payload.values / num_values_of(architecture)
    return CrossoverPart(
        replicas=crossover_replicas(architecture.parameters, total, share),
        all_gather_bytes=int(all_gather_bytes(count, total)),
        aggregate_bytes=int(aggregate_bytes(count, architecture.parameters, share)),
    )


def num_values_of(architecture: Architecture) -> int:
    """Values of all fragments, as they are exchanged."""
    layers = architecture.layers * num_values(architecture.layer_shapes(0))
    return architecture.embed_parameters + layers + architecture.head_parameters


def _cost(config: Config, crew: Crew, groups: list[ReplicaPart], tokens: int, round_s: float | None) -> CostPart | None:
    prices = config.prices
    if round_s is None or not (prices.device_hour or prices.sent_gigabyte):
        return None
    machines = sum(group.count * len(group.machines) for group in crew.groups)
    hours = round_s * config.rounds / 3600
    sent = config.rounds * sum(group.count * group.sent_bytes for group in groups)
    devices, traffic = machines * hours * prices.device_hour, sent / 1e9 * prices.sent_gigabyte
    return CostPart(
        currency=prices.currency,
        devices=devices,
        traffic=traffic,
        total=devices + traffic,
        per_billion_tokens=(devices + traffic) / (tokens * config.rounds / 1e9),
    )
