"""What the links of a simulated run are like: values only, as the launcher writes them down for the members.

A member has one line, which all that it sends and all that it receives share. From one member to another leads a
path, with a rate of its own perhaps, a latency, a jitter; it may be cut. Rates are those of IP packets, as providers
sell them: a payload's bytes, HTTP/2's framing and the headers of TCP and IP all count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Literal

from pydantic import TypeAdapter

Enforcement = Literal["kernel", "token-bucket", "virtual"]
"""`virtual`: nobody has to, because the seconds are simulated."""
LatencyBy = Literal["kernel", "in-process", "virtual"]


@dataclass(frozen=True)
class Line:
    """What joins one member to all others; None is no limit."""

    up_bits_per_second: float | None = None
    down_bits_per_second: float | None = None


@dataclass(frozen=True)
class Path:
    """The way from one member to another, in this direction only."""

    bits_per_second: float | None = None
    latency_s: float = 0.0
    """What every byte takes, beside its turn on the line."""
    jitter_s: float = 0.0
    """Most that is added to the latency; bytes stay in order."""
    is_cut: bool = False
    """Nothing gets through, and nobody is told."""


@dataclass(frozen=True)
class LinkPlan:
    """All lines and paths of a run at one moment; who or what is not named is not limited."""

    lines: Mapping[str, Line] = field(default_factory=dict)
    paths: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """By sender, then by receiver."""

    def line(self, member: str) -> Line:
        """The line of `member`."""
        return self.lines.get(member, Line())

    def path(self, sender: str, receiver: str) -> Path:
        """The way from `sender` to `receiver`."""
        return self.paths.get(sender, {}).get(receiver, Path())

    def limit_bits_per_second(self, sender: str, receiver: str) -> float | None:
        """The least rate on the way from `sender` to `receiver`, with nobody else about."""
        rates = (
            self.line(sender).up_bits_per_second,
            self.path(sender, receiver).bits_per_second,
            self.line(receiver).down_bits_per_second,
        )
        return min((rate for rate in rates if rate is not None), default=None)

    def with_path(self, sender: str, receiver: str, path: Path) -> LinkPlan:
        """The same, with another way from `sender` to `receiver`."""
        return replace(self, paths={**self.paths, sender: {**self.paths.get(sender, {}), receiver: path}})

    def with_line(self, member: str, line: Line) -> LinkPlan:
        """The same, with another line of `member`."""
        return replace(self, lines={**self.lines, member: line})

    @property
    def every_path(self) -> tuple[Path, ...]:
        """All that are named."""
        return tuple(path for by_receiver in self.paths.values() for path in by_receiver.values())

    @property
    def has_latency(self) -> bool:
        """Whether any path takes time."""
        return any(path.latency_s or path.jitter_s for path in self.every_path)

    def only_latency(self) -> LinkPlan:
        """What is left of it for others when the kernel sees to rates and cuts."""
        paths = {
            sender: {to: Path(latency_s=path.latency_s, jitter_s=path.jitter_s) for to, path in by_receiver.items()}
            for sender, by_receiver in self.paths.items()
        }
        return LinkPlan(paths=paths)


@dataclass(frozen=True)
class Simulation:
    """A simulated network: what was asked for, who enforces it, and what the members' own processes do for it now."""

    asked: LinkPlan
    """Before any change by the schedule."""
    rates_by: Enforcement
    latency_by: LatencyBy
    network: str = ""
    """Addresses (CIDR) that are joined to nothing outside this machine; empty on the loopback."""
    shaped: LinkPlan | None = None
    """What a member's own process sees to now; None when the kernel sees to everything."""

    def to_json(self) -> bytes:
        """For `read_simulation`."""
        return _SIMULATION.dump_json(self, indent=1)


_SIMULATION = TypeAdapter(Simulation)


def read_simulation(file: FilePath) -> Simulation:
    """What the launcher wrote down; ValueError when it is something else, OSError when there is nothing."""
    return _SIMULATION.validate_json(file.read_bytes())
