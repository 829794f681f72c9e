"""Which machine of a pipeline computes which layers: the order of the stages, the cut, and the boundary's rank.

Symbols: stage s has n_s >= 1 of the L layers (the first also the embedding, the last also the head), F_s operations in
a micro-batch of t tokens, memory M_s; m micro-batches in a step; k of d numbers of b bytes cross a boundary for each
token, one way on the way forth and the other way on the way back.

    compute   c_s = F_s / speed_s                                                                       (1)
    hop       h_s = t k b / rate_s            k = d where nothing is compressed                         (2)
    stage     tau_s = max(c_s, h_s)                                                                     (3)
    step      (m - 1) max tau + sum c_s + sum (h_s + 2 latency_s);   tokens/s = m t / step              (4)
    memory    M_s = parameters, optimizer, anchor + activations of the min(m, S - s) micro-batches
              that are under way at once (s from 0)               <=  the device's                      (5)
    rank      k = rate tau / (2 t b), at most d: the largest that leaves half of tau free on the
              slowest link of the pipeline                                                              (6)

Chosen among all orders and cuts that fit (5), each criterion among the best of the one before:

    the least max tau (with the least rank that is allowed, or with the one that is given)              (7)
    the fastest slowest link, so that (6) is large                                                      (8)
    the least sum of c_s and 2 latency_s                                                                (9)

Up to MOST_EXACT stages each of (7), (8), (9) is one dynamic programme over the sets of machines that are already at the
end of the pipeline, the one that comes first in it, and the layers that they have: what all orders and cuts one by one
would give. Above, some promising orders are tried, each cut by dynamic programming over layers, O(L^2 S).

Paper: Obeidi et al., arXiv 2601.02360, composes such pipelines with SparseLoCo; it does not say how to cut them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dist_train.planning.devices import Device, Network

Costs = NDArray[np.float64]
MOST_EXACT = 7
SLACK = 2
"""In (6): a boundary may be busy for one part in so many of a stage's time."""
MILDEST_SHARE = 100
"""The strongest compression that is chosen by itself keeps d / MILDEST_SHARE numbers."""


@dataclass(frozen=True)
class Workload:
    """What the stages share, for each layer and once. Bytes and operations are those of forward and backward."""

    layers: int
    hidden_size: int
    micro_batch_tokens: int
    micro_batches: int
    layer_flops: float
    """Of one layer in one micro-batch."""
    embed_flops: float = 0.0
    head_flops: float = 0.0
    layer_bytes: float = 0.0
    """What one layer's parameters and their optimizer hold."""
    embed_bytes: float = 0.0
    head_bytes: float = 0.0
    anchor_bytes: float = 0.0
    """What every stage of a compressed pipeline holds to rebuild the stream."""
    layer_activation_bytes: float = 0.0
    """Of one layer in one micro-batch."""
    head_activation_bytes: float = 0.0
    value_bytes: float = 2.0

    def hop_bytes(self, rank_k: int | None) -> float:
        """What crosses one boundary one way for one micro-batch; None compresses nothing."""
        return self.micro_batch_tokens * (rank_k or self.hidden_size) * self.value_bytes


@dataclass(frozen=True)
class Pins:
    """What somebody has already decided."""

    in_order: bool = False
    """The devices are given in the order of the stages."""
    split: tuple[int, ...] | None = None
    """Layers of each; goes with `in_order`."""
    rank_k: int | None = None
    uncompressed: bool = False


@dataclass(frozen=True)
class Stage:
    """One machine's part."""

    device: Device
    layers: int
    compute_s: float
    hop_s: float
    """To the next stage, for one micro-batch one way; 0 for the last."""
    memory_bytes: float


@dataclass(frozen=True)
class Pipeline:
    """One replica: its stages in order. One stage is a dense replica."""

    stages: tuple[Stage, ...]
    rank_k: int | None
    """None: boundaries are not compressed, or there are none."""
    bottleneck_s: float
    step_s: float
    tokens_per_s: float

    @property
    def waits_for_links(self) -> bool:
        """Whether a boundary, not a machine, sets the pace."""
        return self.bottleneck_s > max(stage.compute_s for stage in self.stages) * (1 + 1e-9)


class PlacementError(ValueError):
    """These machines cannot hold this model. One line: what is too small, and what would help."""


def arrange(
    work: Workload, devices: Sequence[Device], network: Network, pins: Pins = Pins(), most_exact: int = MOST_EXACT
) -> Pipeline:
    """The best pipeline in which every one of `devices` has at least one layer. PlacementError if there is none."""
    if len(devices) > work.layers:
        raise PlacementError(
            f"{len(devices)} stages for {work.layers} layers would leave a stage without layers; use fewer machines"
        )
    if pins.split is not None:
        return _given(work, devices, network, pins)
    if pins.in_order or len(devices) == 1:
        return _best_of(work, [devices], network, pins)
    if len(devices) <= most_exact:
        return _exact(work, devices, network, pins)
    return _best_of(work, promising_orders(devices, network), network, pins)


def promising_orders(devices: Sequence[Device], network: Network) -> list[Sequence[Device]]:
    """Orders to try where there are too many.

    By memory, with the second largest at the other end for the head; by speed; chains of the fastest links.
    """
    by_memory = sorted(devices, key=lambda device: -device.memory_bytes)
    by_speed = sorted(devices, key=lambda device: -device.flops_per_s)
    starts = {device.name: device for device in (by_memory[0], by_memory[-1], by_speed[0], by_speed[-1])}
    chains = [_chain(start, devices, network) for start in starts.values()]
    large_ends = [by_memory[0], *by_memory[2:], *by_memory[1:2]]
    return [large_ends, by_memory, by_speed, by_speed[::-1], *chains, *(chain[::-1] for chain in chains)]


def _chain(start: Device, devices: Sequence[Device], network: Network) -> list[Device]:
    """From `start` always to the one that is reached fastest."""
    chain, left = [start], [device for device in devices if device is not start]
    while left:
        links = [network.link(chain[-1].name, device.name) for device in left]
        nearest = min(range(len(left)), key=lambda i: (-links[i].bits_per_second, links[i].latency_s))
        chain.append(left.pop(nearest))
    return chain


# ---- one criterion after the other ----

Search = Callable[["_Costs", "_Operation"], tuple[float, list[int], list[int]]]
"""Costs and how to add them up -> the least total, the order (indices of devices), the layers of each in that order."""
_Operation = Callable[[Costs, Costs], Costs]


@dataclass(frozen=True)
class _Costs:
    """What a search minimises; inf is not allowed."""

    stage: Callable[[int, int, int], Costs]
    """(device, stages behind it, stages before it: 0 or more than 0) -> (L + 1,) by its layers."""
    hop: Costs
    """(devices, devices)."""


def _exact(work: Workload, devices: Sequence[Device], network: Network, pins: Pins) -> Pipeline:
    def search(costs: _Costs, operation: _Operation) -> tuple[float, list[int], list[int]]:
        return _over_sets(len(devices), work.layers, costs, operation)

    return _lexicographic(work, devices, network, pins, search)


def _best_of(work: Workload, orders: Sequence[Sequence[Device]], network: Network, pins: Pins) -> Pipeline:
    found: list[Pipeline] = []
    for order in orders:

        def search(costs: _Costs, operation: _Operation, count: int = len(order)) -> tuple[float, list[int], list[int]]:
            return _along(count, work.layers, costs, operation)

        try:
            found.append(_lexicographic(work, order, network, pins, search))
        except PlacementError as error:
            reason = error
    if not found:
        raise reason
    return min(found, key=lambda pipeline: (pipeline.bottleneck_s, -(pipeline.rank_k or math.inf), pipeline.step_s))


def _lexicographic(work: Workload, devices: Sequence[Device], network: Network, pins: Pins, search: Search) -> Pipeline:
    """(7), then (8), then (9)."""
    links = [[network.link(a.name, b.name) for b in devices] for a in devices]
    seconds_a_byte = np.array([[8 / link.bits_per_second for link in row] for row in links])
    latency_s = np.array([[2 * link.latency_s for link in row] for row in links])
    fixed_k = pins.rank_k or (None if not pins.uncompressed else work.hidden_size)
    rank_k = fixed_k or _mildest(work)
    hop_s = work.hop_bytes(rank_k) * seconds_a_byte  # (2)
    table = _stage_seconds(work, devices, compressed=len(devices) > 1 and not pins.uncompressed)

    bottleneck_s, _, _ = search(_Costs(table, hop_s), np.maximum)  # (7)
    if not math.isfinite(bottleneck_s):
        raise _too_small(work, devices, pins)

    def allowed(device: int, behind: int, before: int) -> Costs:
        seconds = table(device, behind, before)
        return np.where(seconds <= bottleneck_s, seconds, np.inf)

    slow_enough = np.where(hop_s <= bottleneck_s, seconds_a_byte, np.inf)
    slowest, _, _ = search(
        _Costs(lambda d, behind, before: np.where(np.isfinite(allowed(d, behind, before)), 0.0, np.inf), slow_enough),
        np.maximum,
    )  # (8)
    last_hops = np.where((slow_enough <= slowest), latency_s, np.inf)
    _, order, split = search(_Costs(allowed, last_hops), np.add)  # (9)
    chosen = [devices[i] for i in order]
    return evaluate(work, chosen, split, network, fixed_k or _rank(work, bottleneck_s, slowest))


def _mildest(work: Workload) -> int:
    return max(1, work.hidden_size // MILDEST_SHARE)


def _rank(work: Workload, bottleneck_s: float, slowest_s_a_byte: float) -> int:
    """(6)."""
    if slowest_s_a_byte <= 0:
        return work.hidden_size
    largest = bottleneck_s / slowest_s_a_byte / (SLACK * work.micro_batch_tokens * work.value_bytes)
    return max(_mildest(work), int(min(largest, work.hidden_size)))


def _given(work: Workload, devices: Sequence[Device], network: Network, pins: Pins) -> Pipeline:
    """What was decided, as it is; the rank still chosen where it is open."""
    split = pins.split or ()
    if len(split) != len(devices) or sum(split) != work.layers or min(split) < 1:
        raise PlacementError(
            f"split = {list(split)} does not give {work.layers} layers to {len(devices)} stages, at least one to each"
        )
    if pins.rank_k or pins.uncompressed or len(devices) == 1:
        return evaluate(work, devices, split, network, pins.rank_k)
    dense = evaluate(work, devices, split, network, _mildest(work))
    slowest = max(8 / network.link(a.name, b.name).bits_per_second for a, b in itertools.pairwise(devices))
    return evaluate(work, devices, split, network, _rank(work, dense.bottleneck_s, slowest))


def evaluate(
    work: Workload, devices: Sequence[Device], split: Sequence[int], network: Network, rank_k: int | None
) -> Pipeline:
    """The figures of one order and one cut (1) to (5), whether or not it fits."""
    compressed = len(devices) > 1 and rank_k is not None and rank_k < work.hidden_size
    rank_k = rank_k if compressed else None
    table = _stage_seconds(work, devices, compressed=compressed, check_memory=False)
    links = [network.link(a.name, b.name) for a, b in itertools.pairwise(devices)]
    hops = [8 * work.hop_bytes(rank_k) / link.bits_per_second for link in links]  # (2)
    stages = []
    for i, (device, layers) in enumerate(zip(devices, split, strict=True)):
        behind = len(devices) - 1 - i
        compute_s = float(table(i, behind, i)[layers])
        hop_s = hops[i] if behind else 0.0
        memory_bytes = float(_memory(work, behind, i, compressed)[layers])
        stages.append(Stage(device, layers, compute_s, hop_s, memory_bytes))
    bottleneck_s, step_s = step_seconds(
        work.micro_batches, [stage.compute_s for stage in stages], hops, [link.latency_s for link in links]
    )
    tokens_per_s = work.micro_batches * work.micro_batch_tokens / step_s if step_s else math.inf
    return Pipeline(tuple(stages), rank_k, bottleneck_s, step_s, tokens_per_s)


def step_seconds(
    micro_batches: int, compute_s: Sequence[float], hop_s: Sequence[float], latency_s: Sequence[float]
) -> tuple[float, float]:
    """The largest tau (3) and the step (4); `compute_s` by stage, the others by boundary."""
    bottleneck_s = max([*compute_s, *hop_s])  # (3)
    step_s = (micro_batches - 1) * bottleneck_s + sum(compute_s)
    return bottleneck_s, step_s + sum(hop_s) + sum(2 * latency for latency in latency_s)  # (4)


def _stage_seconds(
    work: Workload, devices: Sequence[Device], *, compressed: bool, check_memory: bool = True
) -> Callable[[int, int, int], Costs]:
    """(1) by layers, inf where (5) does not hold or there is no layer."""
    layers = np.arange(work.layers + 1)
    known: dict[tuple[int, int, bool], Costs] = {}

    def seconds(device: int, behind: int, before: int) -> Costs:
        key = (device, behind, before == 0)
        if key not in known:
            flops = layers * work.layer_flops
            flops = flops + (work.head_flops if behind == 0 else 0) + (work.embed_flops if before == 0 else 0)
            found = np.asarray(flops / devices[device].flops_per_s, np.float64)
            if check_memory:
                fits = _memory(work, behind, before, compressed) <= devices[device].memory_bytes
                found[~fits] = np.inf
            found[0] = np.inf
            known[key] = found
        return known[key]

    return seconds


def _memory(work: Workload, behind: int, before: int, compressed: bool) -> Costs:
    """(5) by layers."""
    under_way = min(work.micro_batches, behind + 1)
    once = work.anchor_bytes if compressed else 0.0
    if before == 0:
        once += work.embed_bytes
    if behind == 0:
        once += work.head_bytes + work.head_activation_bytes
    each = work.layer_bytes + under_way * work.layer_activation_bytes
    return np.asarray(np.arange(work.layers + 1) * each + once, np.float64)


def _too_small(work: Workload, devices: Sequence[Device], pins: Pins) -> PlacementError:
    compressed = len(devices) > 1 and not pins.uncompressed
    least = float(_memory(work, 0, 1, compressed)[1]) - work.head_bytes - work.head_activation_bytes
    for device in devices:
        if device.memory_bytes < least:
            return PlacementError(
                f"device {device.name} has {device.memory_bytes / 1e9:.1f} GB, and one layer alone takes "
                f"{least / 1e9:.1f} GB; leave it out, or lower inner.micro_batch_tokens"
            )
    names = ", ".join(device.name for device in devices[:4]) + (", …" if len(devices) > 4 else "")
    held = sum(device.memory_bytes for device in devices)
    return PlacementError(
        f"{names} ({held / 1e9:.1f} GB together) cannot hold {work.layers} layers; "
        f"add a machine, or lower inner.micro_batch_tokens"
    )


# ---- the searches ----


@cache
def _back(count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(count, count): l - n, and whether there is none."""
    back = np.arange(count)[:, None] - np.arange(count)[None, :]
    return np.maximum(back, 0), back < 0


def _longer(ends: Costs, stage: Costs, operation: _Operation) -> tuple[Costs, NDArray[np.int64]]:
    """(…, L + 1): the least cost of l layers with one more stage in front, and how many of them that stage has.

    min over n of operation(ends[…, l - n], stage[…, n]).
    """
    back, none = _back(ends.shape[-1])
    total = operation(ends[..., back], stage[..., None, :])
    total[..., none] = np.inf
    taken = np.argmin(total, axis=-1)
    return np.take_along_axis(total, taken[..., None], -1)[..., 0], taken


def _along(count: int, layers: int, costs: _Costs, operation: _Operation) -> tuple[float, list[int], list[int]]:
    """The search when the order is that of the devices."""
    ends = np.full(layers + 1, np.inf)
    ends[0] = 0.0
    takens = []
    for i in reversed(range(count)):
        if i < count - 1:
            ends = operation(ends, np.full_like(ends, costs.hop[i, i + 1]))
        ends, taken = _longer(ends, costs.stage(i, count - 1 - i, i), operation)
        takens.append(taken)
    left, split = layers, []
    for taken in reversed(takens):
        split.append(int(taken[left]))
        left -= split[-1]
    return float(ends[layers]), list(range(count)), split


def _over_sets(count: int, layers: int, costs: _Costs, operation: _Operation) -> tuple[float, list[int], list[int]]:
    """The search over all orders: from the last stage to the first, over sets of devices already placed."""
    every = (1 << count) - 1
    least = np.full((1 << count, count, layers + 1), np.inf)
    """[set, the device in front of it, layers]."""
    taken = np.zeros((1 << count, count, layers + 1), np.int64)
    behind_it = np.zeros((1 << count, count, layers + 1), np.int64)
    """The device that stood in front before this one was put there."""
    start = np.full(layers + 1, np.inf)
    start[0] = 0.0
    for placed in range(every):
        behind = placed.bit_count()
        new = [device for device in range(count) if not placed >> device & 1]
        stage = np.stack([costs.stage(device, behind, count - 1 - behind) for device in new])
        ends, next_device = np.broadcast_to(start, stage.shape), np.zeros(stage.shape, np.int64)
        if placed:
            joined = operation(least[placed][None], costs.hop[new][:, :, None])  # (new, in front, layers)
            next_device = np.argmin(joined, axis=1)
            ends = np.take_along_axis(joined, next_device[:, None], 1)[:, 0]
        found, layers_of_new = _longer(ends, stage, operation)
        both = placed | 1 << np.array(new)
        least[both, new], taken[both, new] = found, layers_of_new
        behind_it[both, new] = np.take_along_axis(next_device, np.arange(layers + 1) - layers_of_new, 1)
    device = int(np.argmin(least[every, :, layers]))
    total, order, split = float(least[every, device, layers]), list[int](), list[int]()
    if math.isinf(total):
        return total, order, split
    placed, left = every, layers
    while placed:
        n = int(taken[placed, device, left])
        after = int(behind_it[placed, device, left])
        order.append(device)
        split.append(n)
        placed, left, device = placed & ~(1 << device), left - n, after
    return total, order, split
