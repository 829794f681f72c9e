"""What a stage holds, on its device and beside it.

    device   parameters and gradients 4 + 4, AdamW 4 + 4: 16 bytes a parameter                           (1)
             activations of the micro-batches under way                                                  (2)
             anchor of a compressed pipeline: V d values of 2 bytes                                      (3)
    host     outer copy 4 bytes a parameter; error feedback 4 (sparseloco); outer momentum 4 (diloco)    (4)
             one fragment while it is encoded or applied: 3 times 4 bytes a parameter                    (5)
             a round's payloads: R p                                                                     (6)

Where a machine trains on its processor both are the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from dist_train.config import Config, Method
from dist_train.planning.architecture import Architecture
from dist_train.planning.stages import Workload

PARAMETER_BYTES = {"adamw": {"parameters": 8, "optimizer": 8}, "muon": {"parameters": 8, "optimizer": 4}}
"""(1); Muon keeps one number a parameter (the embedding and the head are AdamW's, and counted too low here)."""
HOST_BYTES: dict[Method, dict[str, int]] = {
    "sparseloco": {"outer_copy": 4, "error_feedback": 4, "outer_momentum": 0},
    "diloco": {"outer_copy": 4, "error_feedback": 0, "outer_momentum": 4},
    "ddp": {"outer_copy": 0, "error_feedback": 0, "outer_momentum": 0},
}
WORKING_BYTES = 12
ANCHOR_VALUE_BYTES = 2


@dataclass(frozen=True)
class StageMemory:
    """Bytes by what they are for."""

    parameters_bytes: int
    """With their gradients."""
    optimizer_bytes: int
    activations_bytes: int
    anchor_bytes: int
    outer_copy_bytes: int
    error_feedback_bytes: int
    outer_momentum_bytes: int
    working_bytes: int

    @property
    def device_bytes(self) -> int:
        """(1), (2), (3)."""
        return self.parameters_bytes + self.optimizer_bytes + self.activations_bytes + self.anchor_bytes

    @property
    def host_bytes(self) -> int:
        """(4), (5), (6)."""
        return self.outer_copy_bytes + self.error_feedback_bytes + self.outer_momentum_bytes + self.working_bytes


def workload_of(config: Config, architecture: Architecture, *, activation_bytes: int, value_bytes: float) -> Workload:
    """What `stages` wants to know of a run; `activation_bytes` of one value kept for the backward pass."""
    tokens, batches = micro_batches_of(config)
    per_parameter = sum(PARAMETER_BYTES[config.inner.optimizer].values())
    document = config.data.sequence_tokens
    return Workload(
        layers=architecture.layers,
        hidden_size=architecture.hidden_size,
        micro_batch_tokens=tokens,
        micro_batches=batches,
        layer_flops=tokens * architecture.layer_flops(document),
        head_flops=tokens * architecture.head_flops,
        layer_bytes=per_parameter * architecture.layer_parameters,
        embed_bytes=per_parameter * architecture.embed_parameters,
        head_bytes=per_parameter * architecture.head_parameters,
        anchor_bytes=ANCHOR_VALUE_BYTES * architecture.embed_parameters,
        layer_activation_bytes=activation_bytes * tokens * architecture.layer_activation_values,
        head_activation_bytes=4 * tokens * architecture.head_activation_values,
        value_bytes=value_bytes,
    )


def micro_batches_of(config: Config) -> tuple[int, int]:
    """Tokens in one micro-batch, and how many of them a step has."""
    tokens = min(config.inner.micro_batch_tokens or config.inner.batch_tokens, config.inner.batch_tokens)
    return tokens, -(-config.inner.batch_tokens // tokens)


def stage_memory(
    config: Config,
    architecture: Architecture,
    work: Workload,
    *,
    layers: int,
    first: bool,
    last: bool,
    micro_batches: int,
    compressed: bool,
    exchanged_bytes: int,
) -> StageMemory:
    """What a stage of `layers` layers holds, with so many `micro_batches` under way; payloads of `exchanged_bytes`."""
    embed = architecture.embed_parameters if first else 0
    head = architecture.head_parameters if last else 0
    parameters = layers * architecture.layer_parameters + embed + head
    each, host = PARAMETER_BYTES[config.inner.optimizer], HOST_BYTES[config.outer.method]
    fragment = max(architecture.layer_parameters if layers else 0, embed, head)
    activations = layers * micro_batches * work.layer_activation_bytes + (work.head_activation_bytes if last else 0)
    return StageMemory(
        parameters_bytes=parameters * each["parameters"],
        optimizer_bytes=parameters * each["optimizer"],
        activations_bytes=int(activations),
        anchor_bytes=int(work.anchor_bytes) if compressed else 0,
        outer_copy_bytes=parameters * host["outer_copy"],
        error_feedback_bytes=parameters * host["error_feedback"],
        outer_momentum_bytes=parameters * host["outer_momentum"],
        working_bytes=fragment * WORKING_BYTES + exchanged_bytes,
    )
