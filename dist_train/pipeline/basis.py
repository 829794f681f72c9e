"""The subspace S = Col(U) that boundaries carry: U (d, k) with orthonormal columns, equal bits on every machine.

    raw      (d, k) fp32: drawn from the run's seed, or fitted to activations by one machine and handed on as bytes (1)
    U        Gram-Schmidt of raw's columns, twice over, in fp64:                                                    (2)
               u_j <- u_j / sqrt(<u_j, u_j>);   u_i <- u_i - <u_i, u_j> u_j   for all i > j
    <a, b>   products summed by folding halves: x[:n/2] + x[n/2:] until one is left, n a power of two                (3)

A library's QR gives other last bits on another processor (its sums run in the order of its vector units), and then
the digests of two honest stages would differ. (2) and (3) consist of single IEEE operations in one order, so the bits
follow from those of raw, and raw's are whole numbers times a constant (`model.drawn_weight`), or came as bytes. Twice,
because once loses orthogonality when the columns are nearly dependent (k close to d); afterwards U'U = I to 1e-14.
U stays in fp64 here and is rounded to the model's type where it is used.

The version counts re-fits: U changes only at an outer sync, for everybody, and a message of another one is refused.

Paper:   Ramasinghe et al., "Protocol Models" (arXiv 2506.01260), for one fixed U for all layers and stages.
Differs: reproducible bits; `fitted`: U from the principal directions of stream minus embedding, instead of random.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.model import drawn_weight
from dist_train.pipeline.traffic import BASIS_HEADER

Doubles = NDArray[np.float64]
MAGIC = b"DTU1"
MOST_HIDDEN = 1 << 20


class BasisError(ValueError):
    """A basis cannot be used, or is not the one agreed on. One line."""


@dataclass(frozen=True, eq=False)
class Basis:
    """U, and which of the run's bases it is."""

    raw: Tensor
    """(d, k) fp32 on the CPU, (1)."""
    version: int
    """0 for the one drawn from the seed; one more for each re-fit."""

    def __post_init__(self) -> None:
        d, k = self.raw.shape
        if not 1 <= k <= d:
            raise BasisError(f"A basis of k = {k} directions in d = {d} dimensions; k must be 1 to d")
        if not bool(torch.isfinite(self.raw).all()):
            raise BasisError("A basis has values that are not finite")

    @property
    def rank_k(self) -> int:
        """k."""
        return int(self.raw.shape[1])

    @cached_property
    def columns(self) -> Tensor:
        """U: (d, k) fp64, orthonormal columns (2). BasisError when raw's columns depend on each other."""
        return torch.from_numpy(np.ascontiguousarray(_orthonormal_rows(self.raw.numpy().T).T))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over version, shape and the bits of U: what stages compare before they talk."""
        header = BASIS_HEADER.pack(MAGIC, self.version, *self.raw.shape)
        return hashlib.sha256(header + self.columns.numpy().astype("<f8").tobytes()).digest()

    def to_bytes(self) -> bytes:
        """What `basis_from_bytes` reads: 16 bytes, then raw row by row in little-endian fp32."""
        return BASIS_HEADER.pack(MAGIC, self.version, *self.raw.shape) + self.raw.numpy().astype("<f4").tobytes()


def seeded_basis(seed: int, hidden_size: int, rank_k: int) -> Basis:
    """The basis that follows from the run's seed alone, version 0."""
    require_rank(rank_k, hidden_size)
    return Basis(drawn_weight(f"pipeline.basis.{rank_k}", torch.Size((hidden_size, rank_k)), seed, 1.0), 0)


def require_rank(rank_k: int, hidden_size: int) -> None:
    """BasisError when there is no such subspace."""
    if not 1 <= rank_k <= hidden_size:
        raise BasisError(f"rank_k = {rank_k} must be 1 to the model's hidden size, {hidden_size}")


def basis_from_bytes(content: bytes) -> Basis:
    """The basis that another machine fitted; BasisError unless every byte is accounted for."""
    if len(content) < BASIS_HEADER.size:
        raise BasisError(f"{len(content)} bytes hold no basis")
    magic, version, d, k = BASIS_HEADER.unpack_from(content)
    if magic != MAGIC or not 1 <= k <= d <= MOST_HIDDEN or len(content) != BASIS_HEADER.size + 4 * d * k:
        raise BasisError(f"{len(content)} bytes that begin with {magic!r} and say {d} x {k} are no basis")
    raw = np.frombuffer(content, "<f4", offset=BASIS_HEADER.size).reshape(d, k).astype(np.float32)
    basis = Basis(torch.from_numpy(raw), version)
    _ = basis.columns  # raises now, not in the middle of a step
    return basis


class StreamCovariance:
    """Sums up what the stream adds to the embedding, until a basis is fitted to it."""

    def __init__(self, hidden_size: int) -> None:
        self._sum = torch.zeros(hidden_size, hidden_size, dtype=torch.float64)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken in."""
        return not bool(self._sum.any())

    @torch.no_grad()
    def add(self, difference: Tensor) -> None:
        """Takes in stream minus embedding of (n, d) tokens, of any layer."""
        precise = difference.detach().to("cpu", torch.float64)
        self._sum.addmm_(precise.T, precise)

    def sketch(self, rank_k: int) -> Tensor:
        """(rank_k, d) fp32 rows whose products add up to nearly the same sum; no rows when nothing was taken in."""
        if self.is_empty:
            return torch.empty(0, len(self._sum))
        energies, directions = torch.linalg.eigh(self._sum)  # ascending
        rows: Tensor = (directions * energies.clamp_min(0).sqrt()).T[-rank_k:]
        return rows.to(torch.float32).contiguous()

    def basis(self, rank_k: int, version: int) -> Basis:
        """The `rank_k` directions with most energy. Its bits are this machine's: hand on `to_bytes`, don't refit."""
        _, directions = torch.linalg.eigh(self._sum)  # ascending
        return Basis(directions.flip(1)[:, :rank_k].to(torch.float32).contiguous(), version)


def _orthonormal_rows(raw: NDArray[np.float32]) -> Doubles:
    """(k, d) fp64 with orthonormal rows that span those of `raw` (2)."""
    rows = raw.astype(np.float64)
    for _ in range(2):
        for j, row in enumerate(rows):
            length = np.sqrt(_folded_sum(row * row))
            if length < 1e-150:
                raise BasisError(f"Column {j} of a basis depends on those before it")
            row /= length  # noqa: PLW2901 - a view: the row itself changes
            rest = rows[j + 1 :]
            rest -= _folded_sum(rest * row)[:, None] * row
    return rows


def _folded_sum(values: Doubles) -> Doubles:
    """Sums over the last dimension, in an order that depends on its length alone (3)."""
    width = 1 << (values.shape[-1] - 1).bit_length()
    if width != values.shape[-1]:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], width - values.shape[-1]))], axis=-1)
    while width > 1:
        width //= 2
        values = values[..., :width] + values[..., width:]
    return values[..., 0]
