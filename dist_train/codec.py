"""The codec that a config names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.registry import codec_for

if TYPE_CHECKING:
    from compression.codec import Codec
    from dist_train.config import Config


def codec_of(config: Config) -> Codec:
    """How the replicas of `config` send what they exchange."""
    sparse, outer = config.sparseloco, config.outer
    return codec_for(
        outer.method,
        dense_values=outer.dense_values,
        chunk=sparse.chunk,
        k=sparse.k,
        value_bits=sparse.value_bits,
        quantizer=sparse.quantizer,
        chunking=sparse.chunking,
    )
