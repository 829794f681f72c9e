"""Small pipeline replicas and batches for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config import Config, parse
from dist_train.data.batches import Batch
from dist_train.model import build_model
from dist_train.outer import PseudoGradientMethod, outer_method
from dist_train.pipeline.rehearsal import Rehearsal
from dist_train.pipeline.terms import Terms, terms_of

VOCABULARY = 300


def config(split: tuple[int, ...] = (3, 1), **replica: Any) -> Config:
    """A mixed run of a pipeline replica `p` and a dense one `d`; what is sent loses nothing unless said."""
    stages = [f"s{i}" for i in range(len(split))]
    pipeline = {"id": "p", "pipeline": stages, "split": split, "compression": "subspace", "rank_k": 8} | replica
    return parse(
        {
            "run": {"seed": 3},
            "model": {"hidden_size": 32, "layers": 4, "heads": 2, "intermediate_size": 48, "vocab_size": VOCABULARY},
            "inner": {"lr": 1e-2, "clip_norm": 0.5},
            "sparseloco": {"chunk": 256, "k": 256, "value_bits": 32, "error_decay": 1.0, "aggregate": "mean"},
            "replica": [pipeline, {"id": "d"}],
        }
    )


def exact(config: Config) -> Terms:
    """The terms of the pipeline replica, with fp64 on the wire."""
    terms = terms_of(config, config.replica[0])
    return Terms(terms.spans, terms.hidden_size, terms.compression, "fp64", terms.micro_batches, terms.basis)


def batch(seed: int, lengths: tuple[int, ...] = (17, 17, 12, 9, 5, 5, 2, 1)) -> Batch:
    """Documents of random tokens, from the whole vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randint(VOCABULARY, (sum(lengths),), generator=generator), lengths)


def as_drawn(config: Config, terms: Terms) -> Rehearsal:
    """The pipeline replica in this process, in fp64, its weights as drawn: what an outer method is made of."""
    return Rehearsal(build_model(config.model, config.run.seed).double(), config.inner, 100, terms)


def rehearsal(config: Config, terms: Terms) -> Rehearsal:
    """The same, its weights where a round begins."""
    inner = as_drawn(config, terms)
    start(inner)
    return inner


def start(inner: Rehearsal) -> None:
    """Puts the weights where they begin after a sync."""
    if inner.bond is not None:
        with torch.no_grad():
            for name, parameter in inner.model.named_parameters():
                parameter.copy_(inner.bond.begin(name, parameter.detach().clone()))


def method(config: Config, inner: Rehearsal) -> PseudoGradientMethod:
    """The outer method of a replica, its bond included; the weights move to where a round begins."""
    outer = outer_method(config, inner.model, inner, start=inner.bond)
    assert isinstance(outer, PseudoGradientMethod)
    return outer


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def distance(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|."""
    return float((one - other).norm() / other.norm())
