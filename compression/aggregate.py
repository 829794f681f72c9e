"""Many replicas' updates to one, the same bits on every machine.

    u_r            the update of replica r, in the manifest's order; zero where it has no value
    s_r            its guard factor, 1 when the guard is off

    mean           (s_1 u_1 + s_2 u_2 + ... + s_R u_R) / R                            (1)
    contributors   the same sum / number of replicas that sent this place, at least 1     (2)
    weighted       sum of (s_r w_r) u_r,   w_r = tokens_r / sum of tokens             (3)

    guard          s_r = min(1, median / |u_r|),  median: the lower middle of the norms above 0    (4)

Every replica must reach the same parameters, so nothing here may depend on the hardware: only fp32 operations that
round once, elementwise, in the given order; factors are rounded to fp32 before they multiply; division has a tensor on
the same device as divisor (a Python number would be turned into a multiplication by its reciprocal on a GPU). No sum
runs over an array but the norm's, and that is a sum of integers, the same in any order:

    2^x >= max |v|,   q_i = trunc((v_i 2^-x)^2 2^f),   |u|^2 = 2^(2x - f) sum q_i     (5)
    f = 62 - bits of n, so that the sum of n terms stays below 2^63

The scaling and the square are exact in fp64 (24 bits, doubled), and what is cut off is at most n 2^(2x - f) in all:
less than 2^-14 of |u|^2 for 2^24 values.

The lower middle, not the mean of the two: of two replicas, one with an update a million times too long must not set the
measure. Norms of zero do not count, or a replica with nothing to say would silence all others.

Paper: Sarfi et al., arXiv 2508.15706, eq. (5) there for `mean`; the Covenant-72B report (arXiv 2603.08163) for the
guard; their code for `contributors`.
Differs: the order and rounding of every operation are fixed; `weighted` is ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from compression.codec import Update

Rule = Literal["mean", "contributors", "weighted"]
_SLAB_VALUES = 1 << 20


def aggregate(updates: Sequence[Update], weights: Sequence[int], rule: Rule, num_values: int, guard: bool) -> Tensor:
    """The combined update, a new (num_values,) fp32 buffer on the updates' device.

    `weights` are the tokens that each replica trained on in this round; only `weighted` uses them. With one replica
    every rule returns its update.
    """
    _check(updates, weights, rule, num_values)
    factors = guard_factors(updates) if guard else [1.0] * len(updates)
    if rule == "weighted":
        tokens = sum(weights)
        factors = [factor * (weight / tokens) for factor, weight in zip(factors, weights, strict=True)]  # (3)
    device = updates[0].values.device
    flat = torch.zeros(num_values, dtype=torch.float32, device=device)
    for update, factor in zip(updates, factors, strict=True):
        update.add_to(flat, float(np.float32(factor)))
    if len(updates) > 1 and rule == "mean":
        flat.div_(torch.full((1,), len(updates), dtype=torch.float32, device=device))  # (1)
    if len(updates) > 1 and rule == "contributors":
        counts = torch.zeros(num_values, dtype=torch.int16, device=device)
        for update in updates:
            update.count_into(counts)
        flat.div_(counts.clamp_(min=1))  # (2)
    return flat


def guard_factors(updates: Sequence[Update]) -> list[float]:
    """s_r of every update, in [0, 1], in fp64."""
    norms = [norm(update.values) for update in updates]
    above_zero = sorted(n for n in norms if n > 0)
    median = above_zero[(len(above_zero) - 1) // 2] if above_zero else 0.0
    return [1.0 if n <= median else median / n for n in norms]  # (4)


def norm(values: Tensor) -> float:
    """The Euclidean norm of (n,) finite fp32 values, the same on every machine and in any order of the values."""
    largest = float(values.abs().max()) if values.device.type != "cpu" else float(max(values.max(), -values.min()))
    if largest == 0.0:
        return 0.0
    exponent = math.frexp(largest)[1]
    fraction_bits = 62 - values.numel().bit_length()
    total = 0
    for start in range(0, values.numel(), _SLAB_VALUES):
        scaled = values[start : start + _SLAB_VALUES].to(torch.float64).mul_(math.ldexp(1.0, -exponent))
        total += int(scaled.mul_(scaled).mul_(math.ldexp(1.0, fraction_bits)).to(torch.int64).sum())  # (5)
    return math.ldexp(math.sqrt(math.ldexp(total, -fraction_bits)), exponent)


def _check(updates: Sequence[Update], weights: Sequence[int], rule: Rule, num_values: int) -> None:
    if not updates or len(updates) != len(weights):
        raise ValueError(
            f"{len(updates)} updates and {len(weights)} weights; there must be at least one, and as many of both"
        )
    if len(updates) > 32_767:
        raise ValueError(f"{len(updates)} updates; at most 32767 can be counted")
    if rule not in ("mean", "contributors", "weighted"):
        raise ValueError(f"rule = {rule!r} does not exist; there are: mean, contributors, weighted")
    if min(weights) < 0 or (rule == "weighted" and sum(weights) == 0):
        raise ValueError(f"weights = {list(weights)}: tokens are not negative, and not all zero under weighted")
    for update in updates:
        if update.positions is None and len(update.values) != num_values:
            raise ValueError(f"A dense update of {len(update.values)} values; the fragment has {num_values}")
