"""What the published SparseLoCo code puts on the wire, to compare bytes with: 72 bits for each value.

    index   int64, the place inside the chunk          64 bits
    code    uint8, one of four bins                     8 bits
    codebook of four fp32 levels for each tensor

Paper: Sarfi et al., arXiv 2508.15706; widths after the authors' code, which sends int64 indices and uint8 codes.
Differs: framed like our other payloads; chunks are padded unless chunking is "divisor".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.sparse import SparseCodec
from compression.streams import FixedWidth

if TYPE_CHECKING:
    from compression.layout import Chunking
    from compression.quantizer import Quantizer
    from compression.quota import Quota


class ReferenceWidths(FixedWidth):
    """64 bits for a place and 8 for a code, whatever they need."""

    coder_id = 255

    def widths(self, quota: Quota, quantizer: Quantizer) -> list[tuple[int, int]]:
        """(bits, symbols) of each stream."""
        return [(64, quota.total), (quantizer.level_bits, quantizer.num_levels(quota)), (8, quota.total)]


class ReferenceWireCodec(SparseCodec):
    """The `statistical` quantizer with the reference's widths."""

    name = "sparseloco-reference-wire"
    codec_id = 17

    def __init__(self, chunk: int = 4096, k: int = 64, *, chunking: Chunking = "padded") -> None:
        super().__init__(chunk, k, 2, "statistical", ReferenceWidths(), chunking=chunking)
