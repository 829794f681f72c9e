"""From what a user chooses to the codec that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from compression.dense import DenseCodec, DenseValues
from compression.entropy import Entropy
from compression.reference_wire import ReferenceWireCodec
from compression.rice import Rice
from compression.sparse import SparseCodec
from compression.streams import FixedWidth, StreamCoder

if TYPE_CHECKING:
    from compression.codec import Codec
    from compression.layout import Chunking

CoderName = Literal["entropy", "rice", "fixed"]
Method = Literal["sparseloco", "sparseloco-reference-wire", "diloco", "ddp"]


def codec_for(
    method: Method,
    *,
    dense_values: DenseValues = "fp32",
    chunk: int = 4096,
    k: int = 64,
    value_bits: int = 2,
    quantizer: str = "sign-magnitude",
    coder: CoderName = "entropy",
    chunking: Chunking = "padded",
) -> Codec:
    """The codec of an outer method. `dense_values` is read by diloco and ddp only, the others by sparseloco only.

    Where `entropy` has no model for what a quantizer says (fp32 values, the `statistical` codebook), it is `rice`.
    """
    if method == "sparseloco":
        known = (quantizer, value_bits) in (("sign-magnitude", 1), ("sign-magnitude", 2))
        coders: dict[CoderName, StreamCoder] = {
            "entropy": Entropy() if known else Rice(),
            "rice": Rice(),
            "fixed": FixedWidth(),
        }
        return SparseCodec(chunk, k, value_bits, quantizer, coders[coder], chunking=chunking)
    if method == "sparseloco-reference-wire":
        return ReferenceWireCodec(chunk, k, chunking=chunking)
    if method in ("diloco", "ddp"):
        return DenseCodec(dense_values)
    raise ValueError(
        f"method = {method!r} does not exist; there are: sparseloco, sparseloco-reference-wire, diloco, ddp"
    )


def prepare(codec: Codec) -> None:
    """Compiles what `codec` needs: a quarter of a minute when it was never used on this machine, else a moment.

    Called before a round, so that it does not fall into one; by one process before several start, so that only one
    compiles.
    """
    layout = codec.layout({"matrix": (64, 64), "vector": (64,)})
    update = codec.decode(codec.encode(torch.zeros(layout.num_values), layout), layout)
    update.add_to(torch.zeros(layout.num_values))
    update.count_into(torch.zeros(layout.num_values, dtype=torch.int16))
