"""What the machines of one replica take together for an inner step that this process has computed alone.

C the seconds of the whole step on one machine, m micro-batches, S stages of which s has the part p_s of the parameters
that are multiplied with (so of the operations), h_s a message's seconds over boundary s:

    one rank     C                                                                                        (1)
    n ranks      C / n            measured; a speed that was told is that of the replica                  (2)
    a pipeline   the step of `dist_train.planning.stages` (4), with c_s = p_s C / m and the links of now,
                 and the longest round trip to the first stage, for the norm by which all clip            (3)
                 told, T seconds without links:   C = m T / ((m - 1) max p_s + 1)                         (4)

What a replica's machines say to each other for the exchange is left out; what an evaluation sends is counted, and takes
no time on the links.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from comms.ledger import MESSAGE_HEADER_BYTES
from comms.link_plan import Line
from comms.virtual_network import framed_bytes
from dist_train.model import fragment_shapes
from dist_train.planning.stages import step_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from comms.ledger import Direction, Kind
    from comms.link_plan import LinkPlan
    from comms.virtual_network import VirtualNetwork
    from dist_train.config import Config, ReplicaConfig
    from dist_train.data.batches import Batch
    from dist_train.pipeline.rehearsal import InTurn
    from dist_train.pipeline.terms import Terms


class Machines(Protocol):
    """Of one replica."""

    def measured_s(self, alone_s: float) -> float:
        """What a step takes that took this process `alone_s`."""
        ...

    def told_s(self, told_s: float) -> float:
        """What a step takes that takes them `told_s` when links cost nothing."""
        ...

    def count(self) -> None:
        """Counts what they sent each other in the step that was just computed."""
        ...

    def count_evaluation(self, batches: Sequence[Batch]) -> None:
        """Counts what they send each other to evaluate `batches`."""
        ...


class Ranks:
    """One rank (1), or several on one machine (2)."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def measured_s(self, alone_s: float) -> float:
        """Divided among them."""
        return alone_s / self._ranks

    def told_s(self, told_s: float) -> float:
        """As told."""
        return told_s

    def count(self) -> None:
        """Nothing: what they say stays on their machine."""

    def count_evaluation(self, batches: Sequence[Batch]) -> None:
        """Nothing, likewise."""


class Stages:
    """The machines of a pipeline (3)."""

    def __init__(
        self, replica: ReplicaConfig, terms: Terms, parts: Sequence[float], engine: InTurn, network: VirtualNetwork
    ) -> None:
        self._replica, self._parts, self._engine, self._network = replica, parts, engine, network
        self._wire = terms.wire()

    def measured_s(self, alone_s: float) -> float:
        """(3)"""
        return self._step_s(alone_s / self._engine.micro_batches)

    def told_s(self, told_s: float) -> float:
        """(3), (4)"""
        return self._step_s(told_s / ((self._engine.micro_batches - 1) * max(self._parts) + 1))

    def count(self) -> None:
        """A message there and one back over each boundary, for each micro-batch."""
        num_bytes = self._engine.micro_batches * self._message_bytes
        for stage in range(len(self._parts) - 1):
            self._tally(stage + 1, "sent", "activation", num_bytes)
            self._tally(stage, "received", "activation", num_bytes)
            self._tally(stage, "sent", "activation_gradient", num_bytes)
            self._tally(stage + 1, "received", "activation_gradient", num_bytes)

    def count_evaluation(self, batches: Sequence[Batch]) -> None:
        """A message there over each boundary, for each micro-batch of each batch."""
        message_bytes = [self._wire.num_bytes(self._engine.room_of(b)) + MESSAGE_HEADER_BYTES for b in batches]
        num_bytes = self._engine.micro_batches * sum(message_bytes)
        for stage in range(len(self._parts) - 1):
            self._tally(stage + 1, "sent", "activation", num_bytes)
            self._tally(stage, "received", "activation", num_bytes)

    @property
    def _message_bytes(self) -> int:
        return self._wire.num_bytes(self._engine.room_tokens) + MESSAGE_HEADER_BYTES

    def _tally(self, other: int, direction: Direction, kind: Kind, num_bytes: int) -> None:
        replica = self._replica.id
        self._network.ledger(replica).tally(
            peer=f"{replica}/{other}", direction=direction, kind=kind, num_bytes=num_bytes
        )

    def _step_s(self, micro_batch_s: float) -> float:
        """Of micro-batches that would take one machine `micro_batch_s` each."""
        hops = list(pairwise(self._replica.pipeline))
        latencies_s = [self._round_trip_s(one, other) / 2 for one, other in hops]
        first, *others = self._replica.pipeline
        compute_s = [part * micro_batch_s for part in self._parts]
        hop_s = [self._hop_s(one, other) for one, other in hops]
        _, step_s = step_seconds(self._engine.micro_batches, compute_s, hop_s, latencies_s)
        return step_s + max(self._round_trip_s(first, other) for other in others)

    def _round_trip_s(self, one: str, other: str) -> float:
        return self._network.latency_s(one, other) + self._network.latency_s(other, one)

    def _hop_s(self, one: str, other: str) -> float:
        """Of the slower direction."""
        plan, on_wire = self._network.plan, framed_bytes(self._message_bytes)
        limits = plan.limit_bits_per_second(one, other), plan.limit_bits_per_second(other, one)
        return max(8 * on_wire / limit if limit is not None else 0.0 for limit in limits)


def shares_of_stages(config: Config, terms: Terms, *, embedding: bool) -> list[float]:
    """The part of the model that is each stage's. With the `embedding`, of what it exchanges with other replicas;
    without, of what it multiplies with (p_s): the embedding is looked up.
    """
    shapes = fragment_shapes(config.model)
    sizes = {fragment: sum(shape.numel() for shape in named.values()) for fragment, named in shapes.items()}
    stages = [sum(sizes[f"layer.{layer}"] for layer in span) for span in terms.spans]
    stages[0] += sizes["embed"] if embedding else 0
    stages[-1] += sizes["head"]
    return [stage / sum(stages) for stage in stages]


def together(plan: LinkPlan, owned: Mapping[str, Mapping[str, float]]) -> LinkPlan:
    """`plan`, in which each replica of several stages has a line and paths in its own name: theirs, side by side.

    `owned`, by replica and stage, is how much of the model each stage exchanges. The payload of a replica is in as many
    parts, and the last of them decides: the rate of the whole is the least of rate_s / owned_s. Latencies are those of
    the first stage, which speaks for the replica.
    """
    for replica, stages in owned.items():
        lines = {stage: plan.line(stage) for stage in stages}
        up = _least({stage: line.up_bits_per_second for stage, line in lines.items()}, stages)
        down = _least({stage: line.down_bits_per_second for stage, line in lines.items()}, stages)
        if (up, down) != (None, None):
            plan = plan.with_line(replica, Line(up, down))
        first = next(iter(stages))
        for other in _others(plan, stages):
            there = {stage: plan.path(stage, other).bits_per_second for stage in stages}
            back = {stage: plan.path(other, stage).bits_per_second for stage in stages}
            plan = plan.with_path(
                replica, other, replace(plan.path(first, other), bits_per_second=_least(there, stages))
            ).with_path(other, replica, replace(plan.path(other, first), bits_per_second=_least(back, stages)))
    return plan


def _others(plan: LinkPlan, stages: Mapping[str, float]) -> list[str]:
    """With whom any of `stages` has a path, but themselves."""
    named = set(plan.paths) | {to for by_receiver in plan.paths.values() for to in by_receiver}
    return sorted(named - stages.keys())


def _least(rates: Mapping[str, float | None], owned: Mapping[str, float]) -> float | None:
    return min((rate / owned[stage] for stage, rate in rates.items() if rate is not None), default=None)
