"""The replicas of a plan: memory, links and seconds of each group of those that are alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comms.payloads import stream_bytes
from dist_train.planning.contents import LinkPart, ReplicaPart, StagePart
from dist_train.planning.machines import network_of
from dist_train.planning.memory import stage_memory
from dist_train.planning.round_seconds import Exchange, Speed, line_bytes, phase_seconds
from dist_train.rates import line_of

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.planning.architecture import Architecture
    from dist_train.planning.machines import Crew, Group, Machine
    from dist_train.planning.payload import Payload
    from dist_train.planning.stages import Workload

RELAY = "relay"


@dataclass(frozen=True)
class PlannedRun:
    """What all replicas of a plan have in common."""

    config: Config
    architecture: Architecture
    work: Workload
    payload: Payload
    exchange: Exchange


def exchange_of(config: Config, architecture: Architecture, crew: Crew, payload: Payload, count: int) -> Exchange:
    """What the replicas' phases depend on and all have in common."""
    relayed = config.exchange.route == RELAY
    relay = next((d for d in config.device if d.name == config.plan.coordinator), None)
    relay_line = line_of(relay.line) if relay is not None and relay.line is not None else None
    return Exchange(
        replicas=count,
        parameters=architecture.parameters,
        get_bytes=sum(stream_bytes(size, "get") for size in payload.sizes_bytes),
        line_bytes=line_bytes(payload.sizes_bytes, "get"),
        put_line_bytes=line_bytes(payload.sizes_bytes, "put") if relayed else 0,
        route=config.exchange.route,
        slowest_up_bits_per_second=min(_speaker(group).up_bits_per_second for group in crew.groups),
        relay_up_bits_per_second=(relay_line.up_bits_per_second or math.inf) if relay_line else math.inf,
    )


def _speaker(group: Group) -> Machine:
    """The machine whose line a replica's payloads take: each stage sends its own, so the slowest counts."""
    return min(group.machines, key=lambda machine: machine.up_bits_per_second)


def replica_part(run: PlannedRun, group: Group) -> ReplicaPart:
    """One replica of `group` by itself; what it waits for the others is filled in by `in_round`."""
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


def _stages(run: PlannedRun, group: Group) -> tuple[StagePart, ...]:
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


def in_round(config: Config, group: ReplicaPart, own_s: float | None, round_s: float | None) -> ReplicaPart:
    """`group` in a round of `round_s`, of which its own work takes `own_s`; as it was where these are unknown."""
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


def utilisation_of(groups: list[ReplicaPart], count: int) -> float | None:
    """The mean over all replicas; None where one is unknown."""
    known = [group.utilisation * group.count for group in groups if group.utilisation is not None]
    return sum(known) / count if len(known) == len(groups) else None
