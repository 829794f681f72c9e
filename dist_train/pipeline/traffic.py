"""What the stages of a pipeline send each other in a step, counted as the ledger counts it, from shapes alone.

    S stages, m micro-batches, w bytes of a message (`wire`: 8 + capacity * row_bytes)

    activations             (S - 1) m tensor(w)            each boundary, each micro-batch                      (1)
    their gradients         the same in training, none in evaluation                                            (2)
    the norm to clip by     S (S - 1) tensor(8)            one number from each stage to each other            (3)
    receipts                one for each tensor                                                                 (4)

and beside the steps, k = rank_k, d = hidden_size:

    terms to compare        TERMS_BYTES from each stage to each other                                           (5)
    after each of the first FITS rounds, where a basis is fitted (`fitting`)
    k directions            k d fp32 values from each stage to each other                                       (6)
    the basis               BASIS_HEADER and k d fp32 values from the first stage to all; then (5) again        (7)

tensor(n) is n bytes as messages: a header of the tensor's name and form, gRPC's five bytes for each chunk.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from comms.tensor_header import COLLECTIVE_TAG, ITEM_BYTES, TensorHeader
from comms.tensor_stream import RECEIPT_BYTES, tensor_bytes
from comms.wire import DIGEST_BYTES

if TYPE_CHECKING:
    from comms.ledger import Kind

LANE = "0"
"""The name that torch gives the first process group."""
TERMS_BYTES = 2 * DIGEST_BYTES
"""The digest of the basis, and that of all terms."""
BASIS_HEADER = struct.Struct("<4sIII")
"""Magic, version, d, k."""
FITS = 3
"""After so many rounds of its own a replica fits its basis."""
NORM_BYTES = tensor_bytes(TensorHeader(LANE, COLLECTIVE_TAG, "float64", ()))


def directions_bytes(rank_k: int, hidden_size: int) -> int:
    """What one stage says of its activations (6)."""
    return rank_k * hidden_size * ITEM_BYTES["float32"]


def basis_bytes(rank_k: int, hidden_size: int) -> int:
    """A basis, as one stage hands it on (7)."""
    return BASIS_HEADER.size + directions_bytes(rank_k, hidden_size)


def step_traffic(stages: int, micro_batches: int, message_bytes: int, *, training: bool) -> dict[Kind, int]:
    """Bytes by kind of one batch, all stages together."""
    messages, norms = (stages - 1) * micro_batches, stages * (stages - 1) * training
    shape = (message_bytes // 2,)
    forth = messages * tensor_bytes(TensorHeader(LANE, 0, "bfloat16", shape, "activation"))  # (1)
    back = messages * training * tensor_bytes(TensorHeader(LANE, 0, "bfloat16", shape, "activation_gradient"))  # (2)
    receipts = (messages * (1 + training) + norms) * RECEIPT_BYTES  # (4)
    return {
        "activation": forth,
        "activation_gradient": back,
        "intra_replica": norms * NORM_BYTES,  # (3)
        "control": receipts,
    }
