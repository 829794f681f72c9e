"""What one rank of a replica works with: its part of the model, its engine, and what it answers for.

    one rank            the model                     LocalEngine
    several ranks       the model, on each            SequenceEngine      a plan deals documents out, each step anew
                                                      SharedEngine        each document goes to one rank
    a pipeline          a stage of the model          PipelineEngine      activations go from stage to stage

What the replica does in a round is the same for all three: see `round`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from comms.ledger import Ledger
from dist_train.config import Config, ReplicaConfig
from dist_train.crew import Crew, Duties, alone, spread, staged
from dist_train.engine import Engine, SharedEngine
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model, fragment_shapes, fragments
from dist_train.outer import LocalStart
from dist_train.pipeline.engine import PipelineEngine
from dist_train.pipeline.fitting import FittedStart
from dist_train.pipeline.terms import agree, make_bond, make_stage, terms_of
from dist_train.sequence.engine import sequence_engine


@dataclass(frozen=True)
class Seat:
    """A rank's place in its replica."""

    inner: InnerOptimizer
    duties: Duties
    start: LocalStart | None = None
    """Where its inner steps begin, when not at theta."""

    @property
    def model(self) -> nn.Module:
        """The part of the model that it hosts."""
        return self.inner.model


def seat_of(
    config: Config, replica: ReplicaConfig, crew: Crew, device: torch.device, *, folder: Path, ledger: Ledger
) -> Seat:
    """The seat of this rank of `replica`. ConfigError when the model does not allow it; blocks until all ranks sit.

    What was measured of the ranks is kept in `folder`; what they send each other goes into `ledger`.
    """
    if replica.pipeline:
        return _stage(config, replica, crew, device)
    model = build_model(config.model, config.run.seed).to(device)
    if crew.ranks == 1:
        inner = InnerOptimizer(model, config.inner, config.total_steps)
        return Seat(inner, alone(tuple(fragments(model))))
    engine: Engine = SharedEngine(model, crew, config.inner.micro_batch_tokens)
    if config.sequence.planner != "off":
        engine = sequence_engine(config, replica, model, folder, ledger)
    inner = InnerOptimizer(model, config.inner, config.total_steps, engine)
    return Seat(inner, spread(crew, num_parameters(fragment_shapes(config.model))))


def _stage(config: Config, replica: ReplicaConfig, crew: Crew, device: torch.device) -> Seat:
    terms = terms_of(config, replica)
    agree(terms)
    stage = make_stage(config, terms, crew.rank).to(device)
    bond = make_bond(terms, stage)
    engine = PipelineEngine(stage, bond, terms.micro_batches, is_counted=replica.channel == "grpc")
    settle = None if bond is None else bond.project_weights
    inner = InnerOptimizer(stage.model, config.inner, config.total_steps, engine, settle)
    start: LocalStart | None = bond
    if replica.basis == "fitted":
        start = FittedStart(bond or LocalStart(), engine, terms, crew)
    layers = [[f"layer.{layer}" for layer in span] for span in terms.spans]
    hosted = [["embed", *layers[0]], *layers[1:-1], [*layers[-1], "head"]]
    return Seat(inner, staged(crew, hosted), start)


def num_parameters(shapes: Mapping[str, Mapping[str, torch.Size]]) -> dict[str, int]:
    """Parameters of each fragment."""
    return {fragment: sum(shape.numel() for shape in named.values()) for fragment, named in shapes.items()}
