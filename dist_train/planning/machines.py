"""From a config to replicas and the machines that they are made of: what is pinned stays, what is free is placed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dist_train.config import Config, ConfigError, DeviceConfig, ReplicaConfig
from dist_train.planning.devices import Device, Link, Network
from dist_train.planning.grouping import Pace, place
from dist_train.planning.round_seconds import APPLY_PARAMETERS_PER_S, DECODE_PARAMETERS_PER_S, ENCODE_PARAMETERS_PER_S
from dist_train.planning.stages import Pins, Pipeline, PlacementError, Workload, arrange, evaluate
from dist_train.rates import latency_s, line_of

SHOWN_IDS = 4
WIRE_VALUE_BYTES = {"bf16": 2.0, "int8": 1.0, "fp32": 4.0}


@dataclass(frozen=True)
class Machine:
    """A [[device]] with every gap filled."""

    name: str
    flops_per_s: float | None
    memory_bytes: float = math.inf
    up_bits_per_second: float = math.inf
    down_bits_per_second: float = math.inf
    latency_s: float = 0.0
    encode_parameters_per_s: float = ENCODE_PARAMETERS_PER_S
    decode_parameters_per_s: float = DECODE_PARAMETERS_PER_S
    apply_parameters_per_s: float = APPLY_PARAMETERS_PER_S

    def device(self) -> Device:
        """As the planner of stages sees it; one of unknown speed counts as one operation a second."""
        return Device(self.name, self.flops_per_s or 1.0, self.memory_bytes)


@dataclass(frozen=True)
class Group:
    """`count` replicas that are alike."""

    ids: tuple[str, ...]
    count: int
    machines: tuple[Machine, ...]
    """In the order of the stages."""
    pipeline: Pipeline
    wire_value_bytes: float = WIRE_VALUE_BYTES["bf16"]

    @property
    def knows_speed(self) -> bool:
        """Whether every machine's speed is known."""
        return all(machine.flops_per_s is not None for machine in self.machines)


@dataclass(frozen=True)
class Crew:
    """All replicas, the machines that none of them uses, and whether the plan itself grouped them."""

    groups: tuple[Group, ...]
    idle: tuple[str, ...] = ()
    placed: bool = False


def crew_of(config: Config, work: Workload, default: Machine, replicas: int | None) -> Crew:
    """Who trains. `default` stands for machines of which the config says nothing. ConfigError in one line."""
    machines = _machines(config, default)
    plan = config.plan
    for key in ("device", "coordinator"):
        if (name := getattr(plan, key)) is not None and name not in machines:
            raise ConfigError(f'plan.{key} = "{name}" is none of the [[device]] sections; add it, or name another')
    unnamed = machines[plan.device] if plan.device is not None else default
    used = {name for name in (plan.device, plan.coordinator) if name is not None}
    wanted = config.replica if replicas is None else config.replica[:1]
    pinned: list[Group] = []
    loose: list[ReplicaConfig] = []
    for replica in wanted:
        if members := _members(replica, machines):
            used.update(members)
            described = [machines.get(name) or replace(unnamed, name=name) for name in members]
            pinned.append(_pinned(replica, described, work))
        else:
            loose.append(replica)
    free = [machine for name, machine in machines.items() if name not in used]
    if free and replicas is None:
        return _placed(free, pinned, loose, work, config)
    alike = [_dense(replica.id, unnamed, work) for replica in loose]
    groups = _merged([*pinned, *alike])
    return Crew(groups if replicas is None else (replace(groups[0], count=replicas),))


def _members(replica: ReplicaConfig, machines: Mapping[str, Machine]) -> tuple[str, ...]:
    """The machines that a replica names, described or not; none where it leaves that open."""
    return replica.pipeline or ((replica.id,) if replica.id in machines else ())


def _pinned(replica: ReplicaConfig, machines: list[Machine], work: Workload) -> Group:
    value_bytes = WIRE_VALUE_BYTES[replica.wire_dtype]
    pins = Pins(
        in_order=True,
        split=replica.split,
        rank_k=replica.rank_k,
        uncompressed=replica.compression == "none",
    )
    work = replace(work, value_bytes=value_bytes)
    devices, network = [machine.device() for machine in machines], network_of(machines)
    if len(machines) == 1:
        return _dense(replica.id, machines[0], work)
    try:
        pipeline = arrange(work, devices, network, pins)
    except PlacementError as error:
        raise ConfigError(f"replica {replica.id}: {error}") from None
    return Group((replica.id,), 1, tuple(machines), pipeline, value_bytes)


def _dense(replica: str, machine: Machine, work: Workload) -> Group:
    """One machine with all layers, whether or not it fits: the plan says so."""
    return Group((replica,), 1, (machine,), evaluate(work, [machine.device()], [work.layers], Network(), None))


def _placed(
    free: list[Machine], pinned: list[Group], loose: list[ReplicaConfig], work: Workload, config: Config
) -> Crew:
    if unknown := [machine.name for machine in free if machine.flops_per_s is None]:
        raise ConfigError(
            f"device {unknown[0]} has no tflops, and none can be placed by guessing; "
            f"say it, or measure it there with dist-train plan --measure"
        )
    pace: Pace = "seconds" if getattr(config.inner, "seconds", None) else "steps"
    try:
        found = place(work, [machine.device() for machine in free], network_of(free), pace)
    except PlacementError as error:
        raise ConfigError(str(error)) from None
    by_name = {machine.name: machine for machine in free}
    taken = {group.ids[0] for group in pinned}
    names = [replica.id for replica in loose] + [
        name for i in range(len(free)) if (name := f"replica-{i + 1}") not in taken
    ]
    groups = [
        Group((name,), 1, tuple(by_name[stage.device.name] for stage in pipeline.stages), pipeline)
        for name, pipeline in zip(names, found.replicas, strict=False)
    ]
    return Crew(_merged([*pinned, *groups]), tuple(device.name for device in found.idle), placed=True)


def _merged(groups: list[Group]) -> tuple[Group, ...]:
    """Replicas that are alike counted together: dense ones on machines that differ by nothing but their name."""
    merged: dict[object, Group] = {}
    for group in groups:
        alike = tuple(replace(machine, name="") for machine in group.machines)
        key: object = (alike, group.wire_value_bytes, [stage.layers for stage in group.pipeline.stages].__repr__())
        if (known := merged.get(key)) is None:
            merged[key] = group
        else:
            merged[key] = replace(known, ids=(known.ids + group.ids)[:SHOWN_IDS], count=known.count + group.count)
    return tuple(merged.values())


def network_of(machines: list[Machine]) -> Network:
    """Each pair joined at the slower of the one's way up and the other's way down, the larger latency of both."""
    between = {}
    for one in machines:
        for other in machines:
            rates = (one.up_bits_per_second, other.up_bits_per_second)
            rate = min(*rates, one.down_bits_per_second, other.down_bits_per_second)
            between[one.name, other.name] = Link(rate, max(one.latency_s, other.latency_s))
    return Network(Link(), between)


def _machines(config: Config, default: Machine) -> dict[str, Machine]:
    machines: dict[str, Machine] = {}
    for section in config.device:
        names = [section.name] if section.count == 1 else [f"{section.name}-{i + 1}" for i in range(section.count)]
        for name in names:
            if name in machines:
                raise ConfigError(f'device.name = "{name}" is given twice; names are unique')
            machines[name] = _machine(name, section, default)
    return machines


def _machine(name: str, section: DeviceConfig, default: Machine) -> Machine:
    line = line_of(section.line) if section.line is not None else None
    return Machine(
        name=name,
        flops_per_s=section.tflops * 1e12 if section.tflops is not None else default.flops_per_s,
        memory_bytes=section.memory_bytes if section.memory_bytes is not None else default.memory_bytes,
        up_bits_per_second=(line.up_bits_per_second or math.inf) if line else default.up_bits_per_second,
        down_bits_per_second=(line.down_bits_per_second or math.inf) if line else default.down_bits_per_second,
        latency_s=latency_s(section.latency) if section.latency is not None else default.latency_s,
        encode_parameters_per_s=section.encode_parameters_per_s or default.encode_parameters_per_s,
        decode_parameters_per_s=section.decode_parameters_per_s or default.decode_parameters_per_s,
        apply_parameters_per_s=section.apply_parameters_per_s or default.apply_parameters_per_s,
    )
