"""A basis that is fitted to the activations of the first rounds, and how all stages come to hold the same one.

    round r, every stage but the last     C += (X - A)' (X - A),   of a part of each batch                         (1)
    after the sync                        W = sqrt(lambda_i) v_i for the k largest eigenpairs of C, to stage 0      (2)
    stage 0                               U = principal directions of the sum of all W' W;  its bytes, to all       (3)
    all stages                            compare digests, and go on under the new version                          (4)

The streams of all boundaries share one U, so (3) takes all of them in; a stage sends k directions instead of d x d
sums. The weights are free (`projected-stream`), so a new U needs no new start: theta is where steps begin. This is done
after each of the first `FITS` rounds in which the replica trains, since activations change most in the beginning, and
never again: the version is part of the mark on every message.

U is a replica's own, as error feedback is: it lies in the checkpoints of its stages, the work of a round that is redone
fits the same one, and a replica that begins with others' parameters begins with the seeded one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from comms.errors import CommsError
from dist_train.outer import LocalStart
from dist_train.pipeline.basis import BasisError, StreamCovariance, basis_from_bytes
from dist_train.pipeline.terms import agree
from dist_train.pipeline.traffic import FITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dist_train.crew import Crew
    from dist_train.pipeline.basis import Basis
    from dist_train.pipeline.engine import PipelineEngine
    from dist_train.pipeline.terms import Terms

STATE = "basis"


class FittedStart(LocalStart):
    """The start of one stage of a replica whose basis is fitted; all of its stages call every method together."""

    def __init__(self, around: LocalStart, engine: PipelineEngine, terms: Terms, crew: Crew) -> None:
        """`around` says where weights begin; `terms` are those with the seeded basis."""
        if terms.basis is None:
            raise ValueError("terms without a basis have none to fit")
        self._around, self._engine, self._crew = around, engine, crew
        self._terms, self._seeded = terms, terms.basis
        self._measure()

    def begin(self, name: str, theta: Tensor) -> Tensor:
        """Where that around it begins."""
        return self._around.begin(name, theta)

    def start(self, name: str, theta: Tensor) -> Tensor:
        """Where that around it starts."""
        return self._around.start(name, theta)

    def figures(self) -> dict[str, float]:
        """Those of that around it, and how often the basis was fitted."""
        return self._around.figures() | {"basis_version": float(self._basis.version)}

    def finish_round(self) -> None:
        """(2) to (4), after a round that was trained in; CommsError when another stage is gone, or says no basis."""
        if self._basis.version >= FITS:
            return
        covariance = self._engine.stage.covariance
        mine = b"" if covariance is None else covariance.sketch(self._basis.rank_k).numpy().tobytes()
        sketches = [sketch for sketch in self._crew.all_gather(mine) if sketch]
        if sketches:
            fitted = self._fitted(sketches).to_bytes() if self._crew.rank == 0 else None
            self._go_on_with(_received(self._crew.broadcast(fitted), self._basis))

    def state_dict(self) -> dict[str, Tensor]:
        """The bytes of the basis, where it is no longer the seeded one."""
        if self._basis.version == 0:
            return {}
        return {STATE: torch.frombuffer(bytearray(self._basis.to_bytes()), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to a basis; to the seeded one where `state` has none. ValueError when it does not fit."""
        content = state.get(STATE)
        basis = self._seeded if content is None else basis_from_bytes(bytes(content.numpy()))
        if basis.raw.shape != self._seeded.raw.shape:
            raise BasisError(f"a basis of {list(basis.raw.shape)}, not of {list(self._seeded.raw.shape)}")
        self._go_on_with(basis)

    @property
    def _basis(self) -> Basis:
        return self._seeded if self._terms.basis is None else self._terms.basis

    def _fitted(self, sketches: list[bytes]) -> Basis:
        """(3)"""
        together = StreamCovariance(self._terms.hidden_size)
        for sketch in sketches:
            rows = torch.frombuffer(bytearray(sketch), dtype=torch.float32)
            together.add(rows.view(-1, self._terms.hidden_size))
        return together.basis(self._basis.rank_k, self._basis.version + 1)

    def _go_on_with(self, basis: Basis) -> None:
        self._terms = replace(self._terms, basis=basis)
        agree(self._terms)  # (4)
        self._engine.follow(self._terms)
        self._measure()

    def _measure(self) -> None:
        """Begins to sum up (1), while there is something to fit."""
        stage, fits = self._engine.stage, self._basis.version < FITS
        stage.covariance = StreamCovariance(self._terms.hidden_size) if fits and not stage.is_last else None


def _received(content: bytes, before: Basis) -> Basis:
    """The basis in `content`, once it is one that may follow `before`."""
    try:
        basis = basis_from_bytes(content)
    except BasisError as error:
        raise CommsError(f"stage 0 handed on no basis: {error}") from error
    if (basis.version, basis.raw.shape) != (before.version + 1, before.raw.shape):
        raise CommsError(
            f"stage 0 handed on basis {basis.version} of {list(basis.raw.shape)}, and basis {before.version + 1} of "
            f"{list(before.raw.shape)} is next"
        )
    return basis
