"""SparseLoCo's codec: of every chunk the k largest values, quantized.

    a   (num_values,)  what error feedback wants to send                 -> encode
    S   the k largest of each chunk                topk.select           (1)
    Q   codes and levels of a[S]                   Quantizer.quantize    (2)
    bytes = frame(places of S, levels, codes)      StreamCoder, Frame    (3)
              (1), (2) on another device than the CPU: `packed`

    decode: (3), (2) backwards; everything is checked before anything is allocated, and the meaning of
    every symbol before a value leaves this file                         (4)

The same tensors give the same bytes on every machine. Memory while decoding: at most DECODE_BYTES_PER_VALUE
for each value kept, whatever the payload claims.

Paper: Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", arXiv 2508.15706, eq. for Q(TopK(.)).
Differs: see `layout`, `topk` and `quantizer`; one payload a fragment, not one a tensor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from compression.codec import PayloadError, Update
from compression.layout import CHUNKINGS, Chunking, ChunkLayout
from compression.learning import FIRST_SAVING, bytes_in_round
from compression.packed import symbols_of
from compression.quantizer import QUANTIZERS
from compression.quota import Quota
from compression.streams import FixedWidth, StreamCoder
from compression.wire import Frame, Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from compression.codec import Layout, Shapes
    from compression.streams import Symbols

DECODE_BYTES_PER_VALUE = 96
"""The most memory that decoding takes for each kept value, result included."""


class SparseCodec:
    """k values of every chunk of C, each an index and `value_bits` bits. A `compression.codec.Codec`."""

    name = "sparseloco"
    codec_id = 16

    def __init__(
        self,
        chunk: int = 4096,
        k: int = 64,
        value_bits: int = 2,
        quantizer: str = "sign-magnitude",
        coder: StreamCoder | None = None,
        *,
        chunking: Chunking = "padded",
    ) -> None:
        if (quantizer, value_bits) not in QUANTIZERS:
            known = ", ".join(f"{name} with {width}" for name, width in QUANTIZERS)
            raise ValueError(
                f"quantizer = {quantizer!r} with value_bits = {value_bits} does not exist; there are: {known}"
            )
        if not 1 <= k <= chunk:
            raise ValueError(f"k = {k} is not between 1 and the chunk ({chunk})")
        self.chunk = chunk
        self.k = k
        self.chunking: Chunking = chunking
        self.quantizer = QUANTIZERS[quantizer, value_bits]
        self.coder: StreamCoder = coder or FixedWidth()

    def layout(self, shapes: Shapes) -> ChunkLayout:
        """Chunk after chunk, zero-padded."""
        return ChunkLayout(shapes, self.chunk, self.chunking)

    def encode(self, flat: Tensor, layout: Layout) -> bytes:
        """The payload of (num_values,) fp32 values on any device. ValueError if one to be sent is not finite."""
        quota = self.quota(layout)
        streams = self.coder.encode(symbols_of(flat, quota, self.quantizer), quota, self.quantizer)  # (1), (2)
        return self._frame(layout).seal(streams)  # (3)

    def decode(self, payload: bytes, layout: Layout, device: torch.device | str = "cpu") -> Update:
        """The sparse update; PayloadError names the field that is wrong, and why."""
        quota = self.quota(layout)
        streams = self._frame(layout).unseal(payload, self.coder.limits(quota, self.quantizer))
        symbols = self.coder.decode(streams, quota, self.quantizer)
        positions = _positions(symbols, quota)  # (4)
        if int(symbols.codes.max()) >> self.quantizer.code_bits:
            raise PayloadError(f"codes: {int(symbols.codes.max())} has more than {self.quantizer.code_bits} bits")
        values = self.quantizer.dequantize(symbols.codes, symbols.levels, quota)
        return Update(_tensor(positions, device), _tensor(values, device))

    def num_values(self, layout: Layout) -> int:
        """k of every chunk, or all that a chunk has."""
        return self.quota(layout).total

    def num_bytes(self, layout: Layout, round_number: int | None = None) -> int:
        """Size of a payload, exact unless the stream coder's lengths vary."""
        lengths = self.coder.expected(self.quota(layout), self.quantizer)
        if self.coder.learns and round_number is not None:
            first = 1 - FIRST_SAVING
            lengths = [math.ceil(bytes_in_round(length, length * first, round_number)) for length in lengths]
        return self._frame(layout).overhead_bytes(lengths) + sum(lengths)

    def quota(self, layout: Layout) -> Quota:
        """How many values of each chunk of `layout` are kept. TypeError unless this codec made it."""
        if not isinstance(layout, ChunkLayout) or (layout.chunk, layout.chunking) != (self.chunk, self.chunking):
            raise TypeError(f"{self.name} with chunk = {self.chunk} needs the layout that its own layout() makes")
        return Quota(layout, self.k)

    def _frame(self, layout: Layout) -> Frame:
        parameters = (
            Parameter("chunk", self.chunk),
            Parameter("chunking", CHUNKINGS.index(self.chunking)),
            Parameter("k", self.k),
            Parameter("quantizer", self.quantizer.quantizer_id),
            Parameter("coder", self.coder.coder_id),
        )
        return Frame(self.codec_id, parameters, self.coder.streams, layout.shapes)


def _positions(symbols: Symbols, quota: Quota) -> NDArray[np.int64]:
    """(total,): the kept values' positions in the flat buffer.

    PayloadError unless places ascend strictly inside each chunk, are below C, and none is padding.
    """
    layout = quota.layout
    if symbols.places.max() >= layout.chunk:
        raise PayloadError(f"places: {int(symbols.places.max())} is not below the chunk ({layout.chunk})")
    places = symbols.places.astype(np.int64)
    ascending = places[1:] > places[:-1]
    ascending[np.cumsum(quota.counts)[:-1] - 1] = True
    if not ascending.all():
        raise PayloadError(f"places: number {int(np.flatnonzero(~ascending)[0]) + 1} is not above the one before it")
    if len(layout.partial):
        chunks = quota.spread(np.arange(layout.num_chunks))
        cut = quota.spread(layout.num_real) < layout.chunk
        real = layout.is_real(chunks[cut], places[cut])
        if not real.all():
            chunk = int(chunks[cut][~real][0])
            raise PayloadError(f"places: {int(places[cut][~real][0])} of chunk {chunk} is padding")
    places += quota.spread(np.arange(0, layout.num_values, layout.chunk))
    return places


def _tensor(array: NDArray[np.generic], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.require(array, requirements="W")).to(device)
