"""A step's plan: micro-batches one after another, in each of them groups of ranks side by side."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """One sequence-parallel group of one micro-batch."""

    ranks: tuple[int, ...]
    """Aligned and consecutive: a power of two of them, the first a multiple of their number."""
    sequences: tuple[int, ...]
    """Positions in the step's list of lengths, in the order in which they are packed."""


@dataclass(frozen=True)
class MicroBatch:
    """Groups that work side by side. Their ranks are disjoint; ranks that no group holds are idle."""

    groups: tuple[Group, ...]


@dataclass(frozen=True)
class SequencePlan:
    """What every rank does in one step. Every sequence stands in exactly one group of one micro-batch."""

    micro_batches: tuple[MicroBatch, ...]
    predicted_s: float
    """Sum over the micro-batches of their slowest group, by the cost model."""
    lower_bound_s: float
    """No plan of this step is faster, by the cost model; nan when it was not computed."""
    solve_s: float
    """Seconds spent on planning."""
    planner: str
    """Who made it: "adaptive", "best-homogeneous", "static:4", …"""
