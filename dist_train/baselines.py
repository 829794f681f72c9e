"""What other ways to train would have sent: the same tokens, the same replicas, every byte that any of them sends.

Symbols: R replicas contribute to a round, P parameters, b bytes a value, H inner steps in a round, K values that
SparseLoCo keeps of the model. Every figure is summed over the rounds that were committed, each with the R that it had.

    ring(R, P, b) = R * 2 (R - 1) / R * P * b = 2 (R - 1) P b                         (1) one ring all-reduce
    DDP           = sum over rounds of H * ring(R, P, b)      b = 4 (fp32), 2 (bf16)   (2) one after each inner step
    DiLoCo        = sum over rounds of     ring(R, P, b)                               (3) one after H inner steps
    reference     = sum over rounds of R (R - 1) * 9 K                                 (4) all-gather, 72 bits a value

(1) is the least that any all-reduce can send: reduce-scatter and all-gather each move (R - 1) / R of the buffer out of
every replica. (4) is SparseLoCo as its authors' code sends it: an int64 index and a whole byte for the two-bit value,
each replica's to all others; the small codebooks are left out. Framing and control traffic are left out everywhere,
so the comparison flatters the baselines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FP32_BYTES = 4
BF16_BYTES = 2
REFERENCE_VALUE_BYTES = 8 + 1
FORMULAS = {
    "ddp_fp32": "sum over rounds of H · 2 (R - 1) · P · 4",
    "ddp_bf16": "sum over rounds of H · 2 (R - 1) · P · 2",
    "diloco_fp32": "sum over rounds of 2 (R - 1) · P · 4",
    "diloco_bf16": "sum over rounds of 2 (R - 1) · P · 2",
    "sparseloco_reference_wire": "sum over rounds of R (R - 1) · 9 K",
}
"""(2) to (4) as a report shows them."""


def ring_all_reduce_bytes(replicas: int, parameters: int, value_bytes: int) -> int:
    """What all replicas together send in one ring all-reduce of a buffer of `parameters` values."""
    return 2 * (replicas - 1) * parameters * value_bytes  # (1)


def ddp_bytes(contributors: Iterable[int], steps_per_round: int, parameters: int, value_bytes: int) -> int:
    """Synchronous data parallelism over rounds of so many `contributors` each, `steps_per_round` steps in each."""
    return sum(steps_per_round * ring_all_reduce_bytes(r, parameters, value_bytes) for r in contributors)  # (2)


def diloco_bytes(contributors: Iterable[int], parameters: int, value_bytes: int) -> int:
    """DiLoCo over rounds of so many `contributors` each."""
    return sum(ring_all_reduce_bytes(r, parameters, value_bytes) for r in contributors)  # (3)


def sparseloco_reference_wire_bytes(contributors: Iterable[int], kept_values: int) -> int:
    """SparseLoCo in the reference's wire format over rounds of so many `contributors` each."""
    return sum(r * (r - 1) * kept_values * REFERENCE_VALUE_BYTES for r in contributors)  # (4)
