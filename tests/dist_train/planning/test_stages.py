"""Placement equals what comes of trying everything, and reproduces the published example."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest

from dist_train.planning.devices import Device, Link, Network
from dist_train.planning.grouping import place, total_tokens_per_s
from dist_train.planning.stages import Pins, Pipeline, PlacementError, Workload, arrange, evaluate

CASES = 500
GROUPED_CASES = 100


def random_case(seed: int) -> tuple[Workload, list[Device], Network]:
    rng = random.Random(seed)
    count = rng.randint(1, 4)
    work = Workload(
        layers=rng.randint(1, 6),
        hidden_size=rng.choice([8, 400]),
        micro_batch_tokens=rng.randint(1, 5),
        micro_batches=rng.randint(1, 5),
        layer_flops=rng.choice([1.0, 3.0]),
        embed_flops=rng.choice([0.0, 1.0]),
        head_flops=rng.choice([0.0, 2.0]),
        layer_bytes=rng.choice([1.0, 2.0]),
        embed_bytes=rng.choice([0.0, 3.0]),
        head_bytes=rng.choice([0.0, 3.0]),
        anchor_bytes=rng.choice([0.0, 1.0]),
        layer_activation_bytes=rng.choice([0.0, 0.5]),
        head_activation_bytes=rng.choice([0.0, 1.0]),
    )
    # A few speeds only, so that many cuts tie and the later criteria decide.
    devices = [
        Device(f"d{i}", rng.choice([1.0, 2.0, 3.0, 5.0]), rng.choice([4.0, 8.0, 16.0, math.inf])) for i in range(count)
    ]
    between = {
        (a.name, b.name): Link(rng.choice([50.0, 400.0, 1e4, math.inf]), rng.choice([0.0, 0.25]))
        for a, b in combinations(devices, 2)
    }
    return work, devices, Network(Link(), between)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def stage_bytes(work: Workload, layers: int, number: int, stages: int) -> float:
    under_way = min(work.micro_batches, stages - number)
    held = layers * (work.layer_bytes + under_way * work.layer_activation_bytes)
    held += work.embed_bytes if number == 0 else 0
    held += work.head_bytes + work.head_activation_bytes if number == stages - 1 else 0
    return held + (work.anchor_bytes if stages > 1 else 0)


def tried_out(work: Workload, devices: Sequence[Device], network: Network) -> tuple[float, float, float] | None:
    """Bottleneck, the slowest link's seconds for a byte, compute and latency together: the least, one after another."""
    least_k = max(1, work.hidden_size // 100)
    found: list[tuple[float, float, float]] = []
    for order in itertools.permutations(devices):
        links = [network.link(a.name, b.name) for a, b in itertools.pairwise(order)]
        hops = [8 * work.micro_batch_tokens * least_k * work.value_bytes / link.bits_per_second for link in links]
        for split in compositions(work.layers, len(order)):
            seconds = []
            for i, (device, layers) in enumerate(zip(order, split, strict=True)):
                if stage_bytes(work, layers, i, len(order)) > device.memory_bytes:
                    break
                flops = layers * work.layer_flops + (work.embed_flops if i == 0 else 0)
                flops += work.head_flops if i == len(order) - 1 else 0
                seconds.append(flops / device.flops_per_s)
            else:
                slowest = max((8 / link.bits_per_second for link in links), default=0.0)
                total = sum(seconds) + sum(2 * link.latency_s for link in links)
                found.append((max([*seconds, *hops]), slowest, total))
    if not found:
        return None
    best = min(value for value, _, _ in found)
    found = [f for f in found if f[0] <= best * (1 + 1e-12)]
    slowest = min(value for _, value, _ in found)
    return best, slowest, min(f[2] for f in found if f[1] <= slowest)


def judged(pipeline: Pipeline, work: Workload, network: Network) -> tuple[float, float, float]:
    least_k = max(1, work.hidden_size // 100)
    names = [stage.device.name for stage in pipeline.stages]
    links = [network.link(a, b) for a, b in itertools.pairwise(names)]
    hops = [8 * work.micro_batch_tokens * least_k * work.value_bytes / link.bits_per_second for link in links]
    compute = [stage.compute_s for stage in pipeline.stages]
    slowest = max((8 / link.bits_per_second for link in links), default=0.0)
    return max([*compute, *hops]), slowest, sum(compute) + sum(2 * link.latency_s for link in links)


def test_orders_and_cuts_equal_brute_force_on_500_small_cases() -> None:
    possible = 0
    for seed in range(CASES):
        work, devices, network = random_case(seed)
        wanted = tried_out(work, devices, network) if len(devices) <= work.layers else None
        if wanted is None:
            with pytest.raises(PlacementError) as refusal:
                arrange(work, devices, network)
            assert "\n" not in str(refusal.value)
            continue
        pipeline = arrange(work, devices, network)
        assert judged(pipeline, work, network) == pytest.approx(wanted, rel=1e-9), seed
        assert sum(stage.layers for stage in pipeline.stages) == work.layers
        assert {stage.device for stage in pipeline.stages} == set(devices)
        possible += 1
    assert possible > CASES // 3


def partitions(devices: Sequence[Device]) -> Iterator[list[list[Device]]]:
    """Every grouping of every subset."""
    if not devices:
        yield []
        return
    first, rest = devices[0], devices[1:]
    for grouping in partitions(rest):
        yield grouping
        yield [[first], *grouping]
        for i, group in enumerate(grouping):
            yield [*grouping[:i], [first, *group], *grouping[i + 1 :]]


def rate(work: Workload, group: Sequence[Device], network: Network) -> float:
    try:
        return arrange(work, group, network).tokens_per_s if group else 0.0
    except PlacementError:
        return 0.0


@pytest.mark.parametrize("pace", ["steps", "seconds"])
def test_groupings_equal_brute_force(pace: str) -> None:
    for seed in range(GROUPED_CASES):
        work, devices, network = random_case(seed)
        rate_of = {frozenset(group): rate(work, group, network) for n in range(5) for group in combinations(devices, n)}
        best = 0.0
        for grouping in partitions(devices):
            rates = [rate_of[frozenset(group)] for group in grouping]
            if all(rates):
                best = max(best, total_tokens_per_s(rates, "steps" if pace == "steps" else "seconds"))
        if not best:
            with pytest.raises(PlacementError):
                place(work, devices, network)
            continue
        placement = place(work, devices, network, "steps" if pace == "steps" else "seconds")
        assert placement.tokens_per_s == pytest.approx(best), seed
        used = [stage.device for pipeline in placement.replicas for stage in pipeline.stages]
        assert sorted(d.name for d in [*used, *placement.idle]) == sorted(d.name for d in devices)


# 16 layers of d = 2048 on four cards. Speeds are what fits the published throughputs, half of what the data sheets
# promise or less; 4 micro-batches of 2048 tokens, 10 ms. Attention, embedding and head are left out.
D = 2048
LAYER_FLOPS = 6 * 12 * D * D
CARDS = [Device("3090", 24.8e12), Device("T4", 13.5e12), Device("A10G", 23.3e12), Device("4090", 58.6e12)]
WORKED = Workload(16, D, 2048, 4, layer_flops=2048 * LAYER_FLOPS)


def at(bits_per_second: float) -> Network:
    return Network(Link(bits_per_second, 0.010))


@pytest.mark.parametrize(
    ("split", "bits_per_second", "rank_k", "published"),
    [
        ((3, 2, 3, 8), 500e6, D // 8, 11_800),
        ((4, 4, 4, 4), 500e6, D // 8, 7_500),
        ((3, 2, 3, 8), 100e6, None, 1_800),
        ((3, 2, 3, 8), 100e6, D // 8, 9_100),
        ((3, 2, 3, 8), 100e6, D // 100, 12_300),
    ],
)
def test_the_worked_example_is_reproduced(
    split: tuple[int, ...], bits_per_second: float, rank_k: int | None, published: int
) -> None:
    pipeline = evaluate(WORKED, CARDS, split, at(bits_per_second), rank_k)
    assert pipeline.tokens_per_s == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize("in_order", [True, False])
def test_the_worked_example_is_cut_as_published(in_order: bool) -> None:
    pipeline = arrange(WORKED, CARDS, at(500e6), Pins(in_order=in_order, rank_k=D // 8))
    assert {stage.device.name: stage.layers for stage in pipeline.stages} == {"3090": 3, "T4": 2, "A10G": 3, "4090": 8}


def test_the_largest_rank_that_keeps_compute_the_bottleneck_is_chosen() -> None:
    fast, slow = (arrange(WORKED, CARDS, at(rate)) for rate in (500e6, 100e6))
    assert fast.rank_k is not None
    assert slow.rank_k is not None
    tau = slow.bottleneck_s
    assert slow.rank_k == int(100e6 / 8 * tau / (2 * 2048 * 2))
    assert fast.rank_k == pytest.approx(5 * slow.rank_k, abs=5)
    assert not slow.waits_for_links
    assert arrange(WORKED, CARDS, at(1e12)).rank_k is None
    starved = arrange(WORKED, CARDS, at(1e6))
    assert starved.rank_k == D // 100
    assert starved.waits_for_links


def test_in_flight_micro_batches_put_large_memory_first() -> None:
    """The first stage of S holds S micro-batches; only one order of these three fits."""
    work = Workload(3, 8, 1, 3, layer_flops=1.0, layer_bytes=1.0, layer_activation_bytes=1.0)
    devices = [Device("small", 1.0, 2.0), Device("large", 1.0, 4.0), Device("middle", 1.0, 3.0)]
    assert [s.device.name for s in arrange(work, devices, Network()).stages] == ["large", "middle", "small"]


@pytest.mark.parametrize(
    ("devices", "layers", "pins", "message"),
    [
        ([Device("tiny", 1.0, 0.5), Device("b", 1.0)], 4, Pins(), "tiny has 0.0 GB, and one layer alone takes"),
        ([Device("a", 1.0, 1.5), Device("b", 1.0, 1.5)], 4, Pins(), "a, b .* cannot hold 4 layers"),
        ([Device("a", 1.0), Device("b", 1.0)], 1, Pins(), "would leave a stage without layers"),
        ([Device("a", 1.0), Device("b", 1.0)], 4, Pins(split=(4, 0)), "at least one to each"),
        ([Device("a", 1.0), Device("b", 1.0)], 4, Pins(split=(1, 2)), "does not give 4 layers to 2 stages"),
    ],
)
def test_what_cannot_be_placed_is_one_clear_line(devices: list[Device], layers: int, pins: Pins, message: str) -> None:
    work = Workload(layers, 8, 1, 1, layer_flops=1.0, layer_bytes=1.0)
    with pytest.raises(PlacementError, match=message) as error:
        arrange(work, devices, Network(), pins)
    assert "\n" not in str(error.value)


def test_a_pinned_split_is_taken_as_it_is() -> None:
    pipeline = arrange(WORKED, CARDS, at(500e6), Pins(split=(4, 4, 4, 4), rank_k=D // 8))
    assert [stage.layers for stage in pipeline.stages] == [4, 4, 4, 4]
    assert pipeline.tokens_per_s == evaluate(WORKED, CARDS, (4, 4, 4, 4), at(500e6), D // 8).tokens_per_s


def test_more_stages_than_can_be_tried_are_still_a_valid_cut() -> None:
    rng = random.Random(0)
    devices = [Device(f"d{i}", rng.uniform(1, 9), rng.uniform(30, 90)) for i in range(12)]
    work = Workload(40, 64, 4, 8, layer_flops=1.0, layer_bytes=1.0, layer_activation_bytes=0.25)
    pipeline = arrange(work, devices, Network(Link(1e4, 0.0)))
    assert sum(stage.layers for stage in pipeline.stages) == 40
    assert all(0 < stage.memory_bytes <= stage.device.memory_bytes for stage in pipeline.stages)
    even = [4] * 4 + [3] * 8
    assert pipeline.bottleneck_s <= evaluate(work, devices, even, Network(Link(1e4, 0.0)), 1).bottleneck_s


def test_strong_machines_stand_alone_and_weak_ones_share_a_replica() -> None:
    work = Workload(8, 64, 4, 8, layer_flops=1.0, layer_bytes=1.0)
    strong = [Device(f"strong{i}", 8.0, 100.0) for i in range(2)]
    weak = [Device(f"weak{i}", 2.0, 3.0) for i in range(8)]
    placement = place(work, [*strong, *weak], Network(), "seconds")
    sizes = sorted(len(pipeline.stages) for pipeline in placement.replicas)
    assert sizes == [1, 1, 4, 4]
