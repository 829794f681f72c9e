"""What the stages of a pipeline send each other in a step, counted as the ledger counts it, from shapes alone.

    S stages, m micro-batches, w bytes of a message (`wire`: 8 + capacity * row_bytes)

    activations             (S - 1) m tensor(w)            each boundary, each micro-batch                      (1)
    their gradients         the same in training, none in evaluation                                            (2)
    the norm to clip by     S (S - 1) tensor(8)            one number from each stage to each other            (3)
    receipts                one for each tensor                                                                 (4)

tensor(n) is n bytes as messages: a header of the tensor's name and form, gRPC's five bytes for each chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comms.tensor_header import TensorHeader
from comms.tensor_stream import RECEIPT_BYTES, tensor_bytes

if TYPE_CHECKING:
    from comms.ledger import Kind

LANE = "0"
"""The name that torch gives the first process group."""
COLLECTIVE_TAG = -1
NORM_BYTES = tensor_bytes(TensorHeader(LANE, COLLECTIVE_TAG, "float64", ()))


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
