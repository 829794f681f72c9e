"""What a plan is made on: the config's figures, those of the command line before them, and a measurement.

Of machines of which nothing is said, the one that was measured stands for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dist_train.planning.machines import Machine
from dist_train.planning.memory import workload_of
from dist_train.rates import latency_s, line_of

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.planning.architecture import Architecture
    from dist_train.planning.machines import Crew
    from dist_train.planning.stages import Workload

ACTIVATION_BYTES = {"cpu": 4, "cuda": 2}


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
    is_disturbed: bool = False
    """Whether others kept half of the machine's cores busy just before."""


@dataclass(frozen=True)
class Assumptions:
    """What the command line says beside the config."""

    replicas: int | None = None
    line: str | None = None
    """Of all machines, over what the config says: "50mbit", "10mbit/50mbit"."""
    latency: str | None = None
    bits_per_value: float | None = None
    measured: Measured | None = None


NOTHING_ASSUMED = Assumptions()


def with_line(config: Config, assumptions: Assumptions) -> Config:
    """`config` with the command line's rates in place of its own."""
    changes = {key: value for key in ("line", "latency") if (value := getattr(assumptions, key)) is not None}
    return config.model_copy(update={"device": tuple(d.model_copy(update=changes) for d in config.device)})


def calibrated(config: Config, architecture: Architecture, assumptions: Assumptions) -> tuple[Workload, Machine]:
    """The work in units of the measured device, and the machine that stands for those of which nothing is said."""
    measured = assumptions.measured
    line_text = assumptions.line or config.simulate.line
    latency_text = assumptions.latency or config.simulate.latency
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


def calibration_of(crew: Crew, assumptions: Assumptions) -> str:
    """Where the plan's speeds come from, in words."""
    if assumptions.measured is not None:
        measured = f"measured on this machine ({assumptions.measured.device})"
        return f"{measured} while it was busy: idle, it is faster" if assumptions.measured.is_disturbed else measured
    if all(group.knows_speed for group in crew.groups):
        return "the config's [[device]] figures"
    return "none: add --measure, or [[device]] sections with tflops"
