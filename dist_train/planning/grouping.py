"""Which machines share a replica: a strong one is a replica alone, weak ones together form a pipeline.

With v_r the tokens/s of replica r (`stages`), R replicas, and a pace:

    "steps"     all replicas take the same number of inner steps, and wait for the slowest:  R min v_r     (1)
    "seconds"   each does as much as it can in the same time:                                sum v_r       (2)

is to be large; machines may stay out. Of equals, the grouping with the fewest stages. Up to MOST_EXACT machines every
grouping is compared (dynamic programming over sets of machines); above, for every number of replicas machines are dealt
out, the fastest (or the largest) first, always to the group with least so far, and the best by sum of speeds are worked
out.
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
"""Machines of which every grouping is compared. Among more, orders of more stages than that are not all compared."""
WORKED_OUT = 3
"""Dealt groupings of which every group can hold the model."""


@dataclass(frozen=True)
class Placement:
    """Replicas, the machines that none of them uses, and what all train together."""

    replicas: tuple[Pipeline, ...]
    idle: tuple[Device, ...]
    tokens_per_s: float


def place(work: Workload, devices: Sequence[Device], network: Network, pace: Pace = "steps") -> Placement:
    """The best grouping. PlacementError when no group of these machines can hold the model."""
    groups = _Groups(work, network)
    chosen = _exact(devices, groups, pace) if len(devices) <= MOST_EXACT else _dealt(devices, groups, pace)
    pipelines = tuple(p for group in chosen if (p := groups.best(group)) is not None)
    if not pipelines:
        raise groups.complaint or PlacementError("there is no machine to place; add [[device]] sections")
    used = {stage.device.name for pipeline in pipelines for stage in pipeline.stages}
    idle = tuple(device for device in devices if device.name not in used)
    return Placement(pipelines, idle, total_tokens_per_s([p.tokens_per_s for p in pipelines], pace))


def total_tokens_per_s(rates: Sequence[float], pace: Pace) -> float:
    """(1), (2)."""
    return sum(rates) if pace == "seconds" else len(rates) * min(rates, default=0.0)


class _Groups:
    """The best pipeline of a group of machines, worked out once for all groups that are alike."""

    def __init__(self, work: Workload, network: Network) -> None:
        self._work = work
        self._network = network
        self._known: dict[tuple[object, ...], Pipeline | None] = {}
        self.complaint: PlacementError | None = None
        """Of the largest group that was refused."""
        self._refused = 0

    def best(self, devices: Sequence[Device]) -> Pipeline | None:
        """None when they cannot hold the model."""
        key = tuple(device.name for device in devices)
        if key not in self._known:
            try:
                self._known[key] = arrange(self._work, devices, self._network, Pins(), MOST_EXACT)
            except PlacementError as error:
                self._known[key] = None
                if len(devices) >= self._refused and len(devices) <= self._work.layers:
                    self.complaint, self._refused = error, len(devices)
                elif self.complaint is None:
                    self.complaint = error
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
    """Groupings of every number of replicas, the most promising ones worked out."""
    solo = [device for device in devices if groups.could_hold([device]) and groups.best([device]) is not None]
    strong = {device.name for device in solo}
    weak = [device for device in devices if device.name not in strong]
    candidates = [[[device] for device in solo]]
    for by in (_speed, _memory):
        for count in range(1, len(devices) + 1):
            candidates.append([*_deal(weak, count, by), *([device] for device in solo)])
            candidates.append(_deal(devices, count, by))

    def promise(grouping: Sequence[Sequence[Device]]) -> tuple[float, int]:
        speeds = [sum(device.flops_per_s for device in group) for group in grouping]
        return total_tokens_per_s(speeds, pace), -sum(len(group) for group in grouping)

    best, most, worked_out = list[list[Device]](), 0.0, 0
    for grouping in sorted((c for c in candidates if c), key=promise, reverse=True):
        if not all(groups.could_hold(group) for group in grouping):
            continue
        rates = [p.tokens_per_s for group in grouping if (p := groups.best(group)) is not None]
        value = total_tokens_per_s(rates, pace)
        if value > most:
            best, most = grouping, value
        worked_out += len(rates) == len(grouping)
        if worked_out == WORKED_OUT:
            break
    return best


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
