"""What a tensor between two ranks is, apart from its bytes: checked before a byte of memory is given to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from comms.wire import WireError, text
from protos import tensors_pb2 as pb

TensorKind = Literal["activation", "activation_gradient", "intra_replica"]
ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""The dtypes that travel, by torch's name for them, and the bytes of one value."""
COLLECTIVE_TAG = -1
"""Of tensors that belong to no `send` but to a collective."""
MOST_DIMS = 16
MOST_LANE = 100
_KINDS: Mapping[str, TensorKind] = {kind: kind for kind in get_args(TensorKind)}
_BOUNDARY_DTYPES = frozenset(("float64", "float32", "float16", "bfloat16", "int8", "uint8"))
_MOST_INT = 2**62


@dataclass(frozen=True)
class TensorHeader:
    """A tensor's place among the others, and its form."""

    lane: str
    """The process group within the ranks."""
    tag: int
    dtype: str
    shape: tuple[int, ...]
    kind: TensorKind = "intra_replica"

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        """For an error."""
        return f"{self.kind} {self.dtype}{list(self.shape)} with tag {self.tag}"


KindOf = Callable[[int, int, str], TensorKind]
"""What a tensor counts as that goes from one rank to another: source, destination, dtype."""


def kind_by_direction(source: int, destination: int, dtype: str) -> TensorKind:
    """Up the ranks an activation, down the ranks its gradient; what is neither float nor a byte is neither."""
    if dtype not in _BOUNDARY_DTYPES:
        return "intra_replica"
    return "activation" if source < destination else "activation_gradient"


def header_to_pb(header: TensorHeader, sequence: int, *, announced: bool = False, data: bytes = b"") -> pb.TensorPart:
    """A header as a message, with the tensor's first bytes."""
    tensor = pb.Tensor(
        sequence=sequence, lane=header.lane, tag=header.tag, dtype=header.dtype, shape=header.shape,
        kind=header.kind, announced=announced, data=data,
    )  # fmt: skip
    return pb.TensorPart(tensor=tensor)


def header_from_pb(tensor: pb.Tensor, most_bytes: int) -> TensorHeader:
    """A header, checked; WireError names the field that is wrong, or that `most_bytes` are exceeded."""
    if tensor.dtype not in ITEM_BYTES:
        raise WireError(f"tensor.dtype = {text(tensor.dtype[:40])!r} is none of {', '.join(ITEM_BYTES)}")
    if tensor.kind not in _KINDS:
        raise WireError(f"tensor.kind = {text(tensor.kind[:40])!r} is none of {', '.join(_KINDS)}")
    if len(tensor.lane) > MOST_LANE or not tensor.lane.isprintable():
        raise WireError(f"tensor.lane = {text(tensor.lane[:40])!r} is no group's name")
    if len(tensor.shape) > MOST_DIMS or any(dim > _MOST_INT for dim in tensor.shape):
        raise WireError(f"tensor.shape has {len(tensor.shape)} dims, or one that no tensor has")
    header = TensorHeader(tensor.lane, tensor.tag, tensor.dtype, tuple(tensor.shape), _KINDS[tensor.kind])
    if header.num_bytes > most_bytes:
        raise WireError(f"tensor.shape = {list(header.shape)[:MOST_DIMS]} is more than {most_bytes} bytes")
    return header
