"""What replicas say to each other in bytes: one contribution, and the same training by other methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_train import baselines
from dist_train.codec import codec_of
from dist_train.planning.architecture import num_values
from dist_train.planning.contents import BaselinesPart, CrossoverPart, PayloadPart
from dist_train.planning.crossover import aggregate_bytes, all_gather_bytes, crossover_replicas

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.planning.architecture import Architecture

PUBLISHED_BITS_PER_VALUE = 12 + 2


@dataclass(frozen=True)
class Payload:
    """One contribution, fragment by fragment."""

    sizes_bytes: tuple[int, ...]
    codec_bytes: int
    first_round_bytes: int
    values: int


def payload_of(config: Config, architecture: Architecture, bits_per_value: float | None) -> Payload:
    """Sizes by the codec, or by `bits_per_value` alone."""
    codec = codec_of(config)
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


def payload_part(
    config: Config, architecture: Architecture, payload: Payload, bits_per_value: float | None
) -> PayloadPart:
    """`payload` as the plan tells it."""
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


def baselines_part(config: Config, architecture: Architecture, payload: Payload, count: int) -> BaselinesPart:
    """What other methods would send in a round of so many replicas."""
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


def crossover_part(config: Config, architecture: Architecture, payload: Payload, count: int) -> CrossoverPart | None:
    """From how many replicas on a relay that adds up would send less; None where payloads are dense."""
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
