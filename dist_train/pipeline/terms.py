"""What all stages of one replica must agree on before they talk, and how they find out that they do not.

Each stage builds its terms from the config that it read; `agree` compares digests over the process group, and names
the stage that differs. The first bytes of the digest are the mark on every message afterwards (see `wire`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
import torch.distributed as dist

from comms.wire import DIGEST_BYTES
from dist_train.config import Config, ConfigError, ReplicaConfig
from dist_train.model import architecture_of
from dist_train.pipeline.basis import Basis, BasisError, require_rank, seeded_basis
from dist_train.pipeline.boundary import Boundary, Compression, boundary_of
from dist_train.pipeline.stage import Stage, build_stage_model, require_untied, spans
from dist_train.pipeline.subspace import Bond, check_branches
from dist_train.pipeline.wire import MARK_BYTES, WIRES, Wire, WireName

MICRO_BATCHES_PER_STAGE = 4
"""With m micro-batches in S stages, (S - 1) / (m + S - 1) of a step is waiting: a fifth at most."""


@dataclass(frozen=True)
class Terms:
    """Cut, boundary and wire of a pipeline replica."""

    spans: tuple[range, ...]
    hidden_size: int
    compression: Compression
    wire_dtype: WireName
    micro_batches: int
    basis: Basis | None
    """None where nothing is projected."""

    @property
    def layers(self) -> int:
        """Layers of the whole model."""
        return self.spans[-1].stop

    @property
    def bound_layers(self) -> range:
        """Layers whose branches must stay in S: all before the last boundary, under `subspace`."""
        return range(self.spans[-1].start if self.compression == "subspace" else 0)

    def digest(self) -> bytes:
        """SHA-256 over everything, the basis included."""
        cut = [[span.start, span.stop] for span in self.spans]
        rest = [cut, self.hidden_size, self.compression, self.wire_dtype, self.micro_batches]
        return hashlib.sha256(json.dumps(rest).encode() + self.basis_digest()).digest()

    def basis_digest(self) -> bytes:
        """A SHA-256; zero without a basis."""
        return bytes(DIGEST_BYTES) if self.basis is None else self.basis.digest

    def digests(self) -> bytes:
        """What stages compare: TERMS_BYTES, the basis first."""
        return self.basis_digest() + self.digest()

    def boundary(self) -> Boundary:
        """A new boundary of these terms."""
        return boundary_of(self.compression, self.hidden_size, self.basis)

    def wire(self) -> Wire:
        """The wire under these terms."""
        return Wire(WIRES[self.wire_dtype], self.boundary().width, self.digest()[:MARK_BYTES])


def check_fits(config: Config, replica: ReplicaConfig) -> None:
    """ConfigError, one line, unless the model can be cut in the stages of `replica`: cheaper than `terms_of`."""
    architecture = architecture_of(config.model)
    try:
        require_untied(architecture)
        spans(architecture.num_hidden_layers, len(replica.pipeline), replica.split)
        if replica.compression != "none" and replica.rank_k is not None:
            require_rank(replica.rank_k, architecture.hidden_size)
    except (ConfigError, BasisError) as error:
        raise ConfigError(f'replica "{replica.id}": {error}') from None


def terms_of(config: Config, replica: ReplicaConfig, basis: Basis | None = None) -> Terms:
    """The terms of a pipeline replica; `basis` in place of the one from the run's seed. ConfigError, one line."""
    architecture = architecture_of(config.model)
    stages, d = len(replica.pipeline), architecture.hidden_size
    place = f'replica "{replica.id}"'
    try:
        cut = spans(architecture.num_hidden_layers, stages, replica.split)
        if basis is None and replica.compression != "none":
            basis = seeded_basis(config.run.seed, d, replica.rank_k or max(1, d // 8))
    except (ConfigError, BasisError) as error:
        raise ConfigError(f"{place}: {error}") from None
    return Terms(
        cut,
        d,
        replica.compression,
        replica.wire_dtype,
        replica.micro_batches or MICRO_BATCHES_PER_STAGE * stages,
        None if replica.compression == "none" else basis,
    )


def make_stage(config: Config, terms: Terms, index: int) -> Stage:
    """Stage `index` of a replica, its weights drawn, on the CPU. ConfigError when the model does not allow the mode."""
    boundary, span = terms.boundary(), terms.spans[index]
    model = build_stage_model(config.model, config.run.seed, span, anchored=boundary.anchored)
    check_branches(model, bound_in(terms, span))
    return Stage(model, span, terms.layers, boundary, terms.wire())


def make_bond(terms: Terms, stage: Stage) -> Bond | None:
    """What binds the weights of `stage` to the subspace and moves its anchor; None where nothing does."""
    if terms.basis is None or (stage.is_last and not bound_in(terms, stage.span)):
        return None
    return Bond(
        stage.model,
        terms.basis,
        bound_in(terms, stage.span),
        stage.anchor,
        binds_embedding=terms.compression == "subspace" and stage.anchor is not None,
    )


def bound_in(terms: Terms, span: range) -> range:
    """The layers of `span` that are bound."""
    return range(span.start, min(span.stop, terms.bound_layers.stop))


def agree(terms: Terms, group: dist.ProcessGroup | None = None) -> None:
    """Returns when all stages of `group` have these terms; ConfigError names the first that has others. Blocks."""
    mine = torch.frombuffer(bytearray(terms.digests()), dtype=torch.uint8)
    everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everybody, mine, group=group)
    for stage, theirs in enumerate(everybody):
        if not torch.equal(theirs[:DIGEST_BYTES], mine[:DIGEST_BYTES]):
            raise ConfigError(
                f"stage {stage} has another basis than stage {dist.get_rank(group)}; "
                f"all stages must read one config, and hold the same fitted basis"
            )
        if not torch.equal(theirs, mine):
            raise ConfigError(
                f"stage {stage} has other pipeline settings than stage {dist.get_rank(group)}; "
                f"all stages must read one config"
            )
