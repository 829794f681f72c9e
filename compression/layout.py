"""Where the tensors of a fragment lie in its one flat buffer.

`FlatLayout`, for dense codecs, puts them one after another. `ChunkLayout`, for sparse ones, cuts them in chunks of C
values, each chunk contiguous, so that the buffer viewed as (num_chunks, C) is what top-k works on:

    a matrix            in blocks of sqrt(C) x sqrt(C), block after block along a row of blocks        (1)
    a vector, a scalar  in runs of C: a matrix of one row, with blocks of 1 x C                        (2)
    more dimensions     the leading ones folded into rows, then (1)                                    (3)
    an edge             the last block of a row or column is filled up with zeros                      (4)

The example to keep in mind: a 1536 x 4096 matrix with C = 4096 is 24 x 64 blocks, 1536 chunks, no padding.

With chunking = "divisor", for runs that are compared with the published code, blocks are cut as that code cuts them:

    a matrix            d(rows) x d(columns), d(n) the largest divisor of n up to sqrt(C)              (5)
    a vector            runs of d(n), short as they are                                                (6)

A chunk then holds d d' values, followed by zeros up to C.

Paper: Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", arXiv 2508.15706, for (1) and (2).
Differs: the published code shrinks the chunk to a divisor of the dimension, so that a prime dimension ends with chunks
of one value and nothing is compressed. We pad (4), and never select or send a padded place, unless (5), (6) are asked
for; then our buffer takes C values of memory for each of those chunks, and `MOST_PADDING` bounds how many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from compression.codec import Shapes

MAX_CHUNK = 65_536
"""A place inside a chunk fits 16 bits."""
Chunking = Literal["padded", "divisor"]
"""What becomes of a dimension that is no multiple of a block's side: (4), or (5) and (6)."""
CHUNKINGS: tuple[Chunking, ...] = get_args(Chunking)
"""In the order of their numbers on the wire."""
MOST_PADDING = 64
LITTLE_PADDING = 1 << 24
"""Under (5), (6) a tensor may take so many times its own values in the buffer, or so many in all."""


class FlatLayout:
    """The tensors one after another, row-major, in the order of `shapes`, nothing between them."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = _checked(shapes)
        self.num_values = sum(math.prod(shape) for shape in self.shapes.values())

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new (num_values,) fp32 buffer on the tensors' device."""
        device = _check_tensors(tensors, self.shapes)
        flat = torch.empty(self.num_values, dtype=torch.float32, device=device)
        for name, place in self.unpack(flat).items():
            place.copy_(tensors[name])
        return flat

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat` in the tensors' shapes."""
        check_flat(flat, self.num_values)
        tensors, start = {}, 0
        for name, shape in self.shapes.items():
            tensors[name] = flat[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape)
        return tensors


@dataclass(frozen=True)
class Span:
    """The chunks of one tensor: a grid of blocks, row of blocks after row of blocks."""

    name: str
    shape: tuple[int, ...]
    rows: int
    cols: int
    """The tensor as a matrix (2, 3)."""
    height: int
    width: int
    """One block."""
    chunk: int
    """C, of which the block is the first height * width values; all of them, unless chunking is "divisor"."""
    first_chunk: int

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks down and across."""
        return -(-self.rows // self.height), -(-self.cols // self.width)

    @property
    def num_chunks(self) -> int:
        """Chunks of this tensor."""
        return math.prod(self.grid)

    def view(self, flat: Tensor) -> Tensor:
        """The tensor's part of the flat buffer as (blocks down, blocks across, height, width)."""
        start, block = self.first_chunk * self.chunk, self.height * self.width
        chunks = flat[start : start + self.num_chunks * self.chunk].view(-1, self.chunk)
        return chunks[:, :block].view(*self.grid, self.height, self.width)

    def regions(self, flat: Tensor, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of equally shaped views of the buffer and of the (rows, cols) matrix that cover every real value once.

        One pair where blocks fit, up to four where the last row and the last column of blocks are cut off (4).
        """
        blocks = self.view(flat)
        for down, height, row_range in _bands(self.rows, self.height):
            for across, width, col_range in _bands(self.cols, self.width):
                block = blocks[down, across, :height, :width]
                piece = matrix[row_range, col_range].view(block.shape[0], height, block.shape[1], width)
                yield block, piece.permute(0, 2, 1, 3)  # (1)


class ChunkLayout:
    """Every tensor cut in chunks of `chunk` values, chunk after chunk, the last ones zero-padded."""

    def __init__(self, shapes: Shapes, chunk: int, chunking: Chunking = "padded") -> None:
        side = math.isqrt(chunk) if chunk > 0 else 0
        if side * side != chunk or not 1 <= chunk <= MAX_CHUNK:
            raise ValueError(
                f"chunk = {chunk} is not the square of 1 to 256, and matrices are cut in square blocks; try 4096"
            )
        self.shapes = _checked(shapes)
        self.chunk = chunk
        self.chunking: Chunking = chunking
        spans: list[Span] = []
        first = 0
        for name, shape in self.shapes.items():
            matrix = len(shape) >= 2
            rows, cols = (math.prod(shape[:-1]), shape[-1]) if matrix else (1, math.prod(shape))  # (2), (3)
            height, width = (side, side) if matrix else (1, chunk)
            if chunking == "divisor":
                height, width = _divisor(rows, side), _divisor(cols, side)  # (5), (6)
            spans.append(Span(name, shape, rows, cols, height, width, chunk, first))
            first += spans[-1].num_chunks
            _check_padding(spans[-1])
        self.spans = tuple(spans)
        self.num_chunks = first
        self.num_values = first * chunk
        real = [np.broadcast_arrays(_real(s.rows, s.height)[:, None], _real(s.cols, s.width)) for s in spans]
        self.real_rows: NDArray[np.int64] = np.concatenate([rows.ravel() for rows, _ in real])
        self.real_cols: NDArray[np.int64] = np.concatenate([cols.ravel() for _, cols in real])
        self.widths: NDArray[np.int64] = np.repeat(
            np.array([s.width for s in spans], np.int64), [s.num_chunks for s in spans]
        )
        """(num_chunks,) each: rows and columns of each chunk that are the tensor's, and how wide its rows are."""
        self.num_real: NDArray[np.int64] = self.real_rows * self.real_cols
        """(num_chunks,): how many values of each chunk are the tensor's, not padding."""
        self.partial: NDArray[np.int64] = np.flatnonzero(self.num_real < chunk)
        """The chunks that have padding, ascending."""

    def is_real(self, chunks: NDArray[np.int64], places: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether `places` (below C) of `chunks`, broadcast together, are the tensor's and not padding."""
        rows, cols = np.divmod(places, self.widths[chunks])
        return np.asarray((rows < self.real_rows[chunks]) & (cols < self.real_cols[chunks]))

    def span_of(self, chunk: int) -> Span:
        """The tensor that chunk number `chunk` belongs to."""
        return next(span for span in reversed(self.spans) if span.first_chunk <= chunk)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new (num_values,) fp32 buffer on the tensors' device, paddings zero. Each value is copied once."""
        device = _check_tensors(tensors, self.shapes)
        allocate = torch.zeros if len(self.partial) else torch.empty
        flat = allocate(self.num_values, dtype=torch.float32, device=device)
        for span in self.spans:
            for block, piece in span.regions(flat, tensors[span.name].reshape(span.rows, span.cols)):
                block.copy_(piece)
        return flat

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors: matrices are copied out of their blocks, vectors and scalars share the memory of `flat`."""
        check_flat(flat, self.num_values)
        tensors = {}
        for span in self.spans:
            if span.rows == span.height == 1 and span.width == span.chunk:
                matrix = span.view(flat).view(1, -1)[:, : span.cols]
            else:
                matrix = flat.new_empty(span.rows, span.cols)
                for block, piece in span.regions(flat, matrix):
                    piece.copy_(block)
            tensors[span.name] = matrix.view(span.shape)
        return tensors


def check_flat(flat: Tensor, num_values: int) -> None:
    """ValueError unless `flat` is a contiguous (num_values,) fp32 buffer."""
    if flat.shape != (num_values,) or flat.dtype != torch.float32 or not flat.is_contiguous():
        raise ValueError(
            f"flat is {tuple(flat.shape)} {flat.dtype}; this layout has contiguous ({num_values},) torch.float32"
        )


def _bands(size: int, block: int) -> Iterator[tuple[slice, int, slice]]:
    """(which blocks, how long each is, which values): one of the whole blocks, one of the cut-off last block."""
    whole, rest = divmod(size, block)
    if whole:
        yield slice(0, whole), block, slice(0, whole * block)
    if rest:
        yield slice(whole, whole + 1), rest, slice(whole * block, size)


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` up to `most`."""
    return next(n for n in range(min(size, most), 0, -1) if size % n == 0)


def _check_padding(span: Span) -> None:
    block = span.height * span.width
    if span.chunk > MOST_PADDING * block and span.num_chunks * span.chunk > LITTLE_PADDING:
        raise ValueError(
            f'Tensor {span.name!r} {span.shape}: chunking = "divisor" would cut it in chunks of {block} values of '
            f'{span.chunk}; choose other dimensions, or chunking = "padded"'
        )


def _real(size: int, block: int) -> NDArray[np.int64]:
    """Real values along one dimension of each block: `block` for all but a cut-off last one."""
    return np.minimum(block, size - np.arange(0, size, block, dtype=np.int64))


def _checked(shapes: Shapes) -> Shapes:
    if not shapes:
        raise ValueError("A fragment has no tensors; leave it out of the exchange")
    for name, shape in shapes.items():
        if any(dim < 1 for dim in shape):
            raise ValueError(f"Tensor {name!r} of shape {tuple(shape)} is empty; leave it out of the fragment")
    return MappingProxyType({name: tuple(int(dim) for dim in shape) for name, shape in shapes.items()})


def _check_tensors(tensors: Mapping[str, Tensor], shapes: Shapes) -> torch.device:
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise ValueError(f"The tensors are not those of the layout: {', '.join(odd)} on one side only")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"Tensor {name!r} is {tuple(tensor.shape)}; the layout has {shape}")
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"Tensor {name!r} is {tensor.dtype}; only floating-point tensors can be sent")
    return next(iter(tensors.values())).device
