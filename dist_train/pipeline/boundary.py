"""What crosses from one stage to the next: the stream itself, or k numbers a token that describe it.

X (n, d) the residual stream, U (d, k) the basis, P = U U', A (n, d) the anchors: the embeddings of these tokens as they
were after the last outer sync, which every stage knows.

    send       C = (X - A) U                 (n, k)         (1)
    rebuild    X' = C U' + A                                (2)
    backwards  G U is sent,  (G U) U' is used               (3)

Where the branches write into S (`subspace`), X - A lies in S and X' = X; with free weights (`projected-stream`) X' is
its nearest point in A + S. (3) is what autograd makes of (1) and (2). Token ids never travel: each stage reads the same
batch, so an id above 256 cannot be rounded on its way.

    none               X itself, d numbers a token
    subspace           (1) to (3), and the weights before the last boundary stay in S: exact for that model
    projected-stream   (1) to (3), weights free: lossy

Paper:   Ramasinghe et al., "Protocol Models" (arXiv 2506.01260).
Differs: the anchor is the whole embedding as committed, not its frozen part alone: after a sync both are the same
function, C is smaller by the part that has not changed since, and no stage has to keep an embedding in two parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from dist_train.pipeline.basis import Basis

Compression = Literal["none", "subspace", "projected-stream"]


class Boundary(nn.Module, ABC):
    """Both ends of a boundary, without the wire between them."""

    width: int
    """Numbers a token."""
    anchored: bool
    """Whether both ends need the anchors."""

    @abstractmethod
    def compress(self, stream: Tensor, anchors: Tensor) -> Tensor:
        """(n, width) to send, of the (n, d) stream."""

    @abstractmethod
    def rebuild(self, content: Tensor, anchors: Tensor) -> Tensor:
        """The (n, d) stream, or what is left of it."""


class WholeStream(Boundary):
    """Sends the stream as it is."""

    anchored = False

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.width = hidden_size

    def compress(self, stream: Tensor, anchors: Tensor) -> Tensor:
        """The stream."""
        del anchors
        return stream

    def rebuild(self, content: Tensor, anchors: Tensor) -> Tensor:
        """The stream."""
        del anchors
        return content


class SubspaceBoundary(Boundary):
    """Sends coordinates in S."""

    anchored = True
    u: Tensor
    """U in the model's type; not among the model's tensors: it is no weight."""

    def __init__(self, basis: Basis) -> None:
        super().__init__()
        self.register_buffer("u", basis.columns, persistent=False)
        self.width = basis.rank_k

    def compress(self, stream: Tensor, anchors: Tensor) -> Tensor:
        """C (1)."""
        return (stream - anchors) @ self.u.to(stream.dtype)

    def rebuild(self, content: Tensor, anchors: Tensor) -> Tensor:
        """X' (2)."""
        return content @ self.u.to(content.dtype).T + anchors


def boundary_of(compression: Compression, hidden_size: int, basis: Basis | None) -> Boundary:
    """The boundary of a mode; `basis` for the modes that have one."""
    if compression == "none":
        return WholeStream(hidden_size)
    if basis is None:
        raise ValueError(f'compression = "{compression}" needs a basis')
    return SubspaceBoundary(basis)
