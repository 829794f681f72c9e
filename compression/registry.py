"""From what a user chooses to the codec that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from compression.dense import DenseCodec, DenseValues
from compression.reference_wire import ReferenceWireCodec
from compression.sparse import SparseCodec

if TYPE_CHECKING:
    from compression.codec import Codec

Method = Literal["sparseloco", "sparseloco-reference-wire", "diloco", "ddp"]


def codec_for(
    method: Method,
    *,
    dense_values: DenseValues = "fp32",
    chunk: int = 4096,
    k: int = 64,
    value_bits: int = 2,
    quantizer: str = "sign-magnitude",
) -> Codec:
    """The codec of an outer method. `dense_values` is read by diloco and ddp only, the others by sparseloco only."""
    if method == "sparseloco":
        return SparseCodec(chunk, k, value_bits, quantizer)
    if method == "sparseloco-reference-wire":
        return ReferenceWireCodec(chunk, k)
    if method in ("diloco", "ddp"):
        return DenseCodec(dense_values)
    raise ValueError(
        f"method = {method!r} does not exist; there are: sparseloco, sparseloco-reference-wire, diloco, ddp"
    )
