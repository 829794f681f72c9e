"""What the planner knows of machines: how fast, how large, and how they are joined. Values only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Device:
    """One machine, or several accelerators of one machine that train together."""

    name: str
    flops_per_s: float
    """Reached in training, forward and backward, not what the data sheet promises."""
    memory_bytes: float = math.inf


@dataclass(frozen=True)
class Link:
    """One way between two machines; both directions have the whole rate at the same time."""

    bits_per_second: float = math.inf
    latency_s: float = 0.0


@dataclass(frozen=True)
class Network:
    """The link of every pair of machines: `between` where it names them in either order, else `default`."""

    default: Link = Link()
    between: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def link(self, one: str, other: str) -> Link:
        """How `one` and `other` are joined."""
        return self.between.get((one, other)) or self.between.get((other, one)) or self.default
