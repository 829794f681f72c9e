"""Which machines share a replica: a strong one is a replica alone, weak ones together form a pipeline.

With v_r the tokens/s of replica r (`stages`), R replicas, and a pace:

    "steps"     all replicas take the same number of inner steps, and wait for the slowest:  R min v_r     (1)
    "seconds"   each does as much as it can in the same time:                                sum v_r       (2)

is to be large; machines may stay out. Of equals, the grouping with the fewest stages. Up to MOST_EXACT machines every
grouping is compared (dynamic programming over sets of machines); above, machines are dealt out,
the fastest (or the largest) first, always to the group with least so far; halving finds the most replicas for which
every group can hold the model, and the best grouping on the way there is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dist_train.planning.devices import Device, Network
from dist_train.planning.stages import Pins, Pipeline, PlacementError, Workload, arrange

Pace = Literal["steps", "seconds"]
MOST_EXACT = 5
"""Machines of which every grouping is compared."""
MOST_EXACT_STAGES = 3
"""Among more machines: stages of which every order is compared."""


@dataclass(frozen=True)
class Placement:
    """Replicas, the machines that none of them uses, and what all train together."""

    replicas: tuple[Pipeline, ...]
    idle: tuple[Device, ...]
    tokens_per_s: float


def place(work: Workload, devices: Sequence[Device], network: Network, pace: Pace = "steps") -> Placement:
    """The best grouping. PlacementError when no group of these machines can hold the model."""
    few = len(devices) <= MOST_EXACT
    groups = _Groups(work, network, MOST_EXACT if few else MOST_EXACT_STAGES)
    chosen = _exact(devices, groups, pace) if few else _dealt(devices, groups, pace)
    pipelines = tuple(p for group in chosen if (p := groups.best(group)) is not None)
    if not devices:
        raise PlacementError("there is no machine to place; add [[device]] sections")
    if not pipelines:  # all together, or the reason why even they cannot
        pipelines = (arrange(work, devices[: work.layers], network),)
    used = {stage.device.name for pipeline in pipelines for stage in pipeline.stages}
    idle = tuple(device for device in devices if device.name not in used)
    return Placement(pipelines, idle, total_tokens_per_s([p.tokens_per_s for p in pipelines], pace))


def total_tokens_per_s(rates: Sequence[float], pace: Pace) -> float:
    """(1), (2)."""
    return sum(rates) if pace == "seconds" else len(rates) * min(rates, default=0.0)


class _Groups:
    """The best pipeline of a group of machines, worked out once for all groups that are alike."""

    def __init__(self, work: Workload, network: Network, most_exact: int) -> None:
        self._work = work
        self._most_exact = most_exact
        self._network = network
        self._known: dict[tuple[object, ...], Pipeline | None] = {}

    def best(self, devices: Sequence[Device]) -> Pipeline | None:
        """None when they cannot hold the model."""
        key = tuple(device.name for device in devices)
        if key not in self._known:
            try:
                self._known[key] = arrange(self._work, devices, self._network, Pins(), self._most_exact)
            except PlacementError:
                self._known[key] = None
        return self._known[key]

    def could_hold(self, devices: Sequence[Device]) -> bool:
        """Whether memory and layers suffice, looked at from afar: a group that fails cannot hold the model."""
        work, stages = self._work, len(devices)
        if not 1 <= stages <= work.layers:
            return False
        room = 0
        for behind, device in enumerate(sorted(devices, key=lambda d: d.memory_bytes)):
            each = work.layer_bytes + min(work.micro_batches, behind + 1) * work.layer_activation_bytes
            room += work.layers if math.isinf(device.memory_bytes) else int(device.memory_bytes // max(each, 1e-9))
        whole = work.layers * work.layer_bytes + work.embed_bytes + work.head_bytes
        return room >= work.layers and sum(device.memory_bytes for device in devices) >= whole


def _exact(devices: Sequence[Device], groups: _Groups, pace: Pace) -> list[list[Device]]:
    """By sets: the machine with the lowest number stays out, or is in some group with others of the set."""
    members = [[d for i, d in enumerate(devices) if s >> i & 1] for s in range(1 << len(devices))]
    rate = [0.0] * len(members)
    for s in range(1, len(members)):
        pipeline = groups.best(members[s]) if groups.could_hold(members[s]) else None
        rate[s] = pipeline.tokens_per_s if pipeline else 0.0
    # [set][replicas] -> (least or summed rate, -stages), and the group of the lowest machine (0: stays out)
    best: list[dict[int, tuple[float, int, int]]] = [{0: (math.inf if pace == "steps" else 0.0, 0, 0)}]
    for s in range(1, len(members)):
        lowest = s & -s
        here = {r: (value, stages, 0) for r, (value, stages, _) in best[s ^ lowest].items()}
        for group in _subsets_with(s, lowest):
            if not rate[group]:
                continue
            for r, (value, stages, _) in best[s ^ group].items():
                joined = min(value, rate[group]) if pace == "steps" else value + rate[group]
                candidate = (joined, stages - group.bit_count(), group)
                if candidate[:2] > here.get(r + 1, (-1.0, 0, 0))[:2]:
                    here[r + 1] = candidate
        best.append(here)
    s = len(members) - 1
    final = {r: entry for r, entry in best[s].items() if r}
    if not final:
        return []
    r = max(final, key=lambda r: (final[r][0] * (r if pace == "steps" else 1), final[r][1]))
    chosen = []
    while s:
        group = best[s][r][2]
        if group:
            chosen.append(members[group])
            r -= 1
        s ^= group or s & -s
    return chosen


def _subsets_with(whole: int, lowest: int) -> Iterable[int]:
    rest = whole ^ lowest
    part = rest
    while True:
        yield part | lowest
        if not part:
            return
        part = (part - 1) & rest


def _dealt(devices: Sequence[Device], groups: _Groups, pace: Pace) -> list[list[Device]]:
    """The best of the groupings that `_most_replicas` meets, with strong machines alone, and with all dealt out."""
    solo = [[device] for device in devices if groups.could_hold([device]) and groups.best([device]) is not None]
    strong = {group[0].name for group in solo}
    weak = [device for device in devices if device.name not in strong]
    found = [solo] if solo else []
    for by in (_speed, _memory):
        found += [[*solo, *grouping] for grouping in _most_replicas(weak, groups, by)]
        found += _most_replicas(devices, groups, by)
    return max(found, key=lambda grouping: total_tokens_per_s(_rates(grouping, groups), pace), default=[])


def _most_replicas(
    devices: Sequence[Device], groups: _Groups, by: Callable[[Device], float]
) -> list[list[list[Device]]]:
    """What halving finds on its way to the most replicas that can all hold the model: groupings that can."""
    low, high, found = 0, len(devices) + 1, list[list[list[Device]]]()
    while high - low > 1:
        count = (low + high) // 2
        grouping = _deal(devices, count, by)
        if _rates(grouping, groups):
            found.append(grouping)
            low = count
        else:
            high = count
    return found


def _rates(grouping: Sequence[Sequence[Device]], groups: _Groups) -> list[float]:
    """Of every group; none when one of them cannot hold the model. The scarcest are asked first."""
    rates: list[float] = []
    if not all(groups.could_hold(group) for group in grouping):
        return rates
    for group in sorted(grouping, key=lambda group: sum(device.memory_bytes for device in group)):
        pipeline = groups.best(group)
        if pipeline is None:
            return []
        rates.append(pipeline.tokens_per_s)
    return rates


def _speed(device: Device) -> float:
    return device.flops_per_s


def _memory(device: Device) -> float:
    return device.memory_bytes


def _deal(devices: Sequence[Device], count: int, by: Callable[[Device], float]) -> list[list[Device]]:
    """`count` groups of about equal sums."""
    groups: list[list[Device]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for device in sorted(devices, key=by, reverse=True):
        least = sums.index(min(sums))
        groups[least].append(device)
        sums[least] += by(device)
    return [group for group in groups if group]
