"""The bytes of one message between two stages: a mark, then as many rows as the largest micro-batch has tokens.

    message   (4 + capacity * row_bytes / 2) bf16 "values", of which only the bits count
    mark      8 bytes of the digest of what the stages agreed on (`terms`); another mark is refused            (1)
    row       fp32, bf16: the k numbers.   int8: a scale s (fp32), then k numbers q_i with x_i = s q_i,
              s = max |x_i| / 127                                                                              (2)
    capacity  rows that a message has room for; those beyond the micro-batch's tokens are zero                  (3)

A schedule of torch.distributed.pipelining sends tensors of one shape and lets autograd carry their gradients back, so
all formats travel in one floating-point dress: `pack` turns numbers to a message and, backwards, a message of gradients
to numbers; `unpack` does the reverse. Nobody computes with a message. The same row format serves both directions.
Packed micro-batches differ in their tokens, hence (3): rows are added on the wire only, nothing is computed for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

WireName = Literal["fp64", "fp32", "bf16", "int8"]
MARK_BYTES = 8
DRESS = torch.bfloat16
STEPS_OF_ROOM = 16


def room_for(tokens: Sequence[int]) -> int:
    """Rows (3) for a step whose micro-batches have so many tokens, so that steps of nearly equal size share schedules.

    The largest, rounded up to a sixteenth of the usual one.
    """
    usual = 1 << max(0, (sum(tokens) // len(tokens)).bit_length() - 1)
    room = max(1, usual // STEPS_OF_ROOM)
    return -(-max(tokens) // room) * room


class WireError(RuntimeError):
    """A message is not what this stage agreed to receive. One line."""


class RowFormat(ABC):
    """Numbers to bytes and back, row by row."""

    @abstractmethod
    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` numbers; even."""

    @abstractmethod
    def encode(self, content: Tensor) -> Tensor:
        """(n, row_bytes) uint8 of (n, width) numbers."""

    @abstractmethod
    def decode(self, rows: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """(n, width) numbers of `dtype` from what `encode` made."""


@dataclass(frozen=True)
class Plain(RowFormat):
    """Each number in `dtype`."""

    dtype: torch.dtype

    def row_bytes(self, width: int) -> int:
        """As wide as the numbers are."""
        return width * self.dtype.itemsize

    def encode(self, content: Tensor) -> Tensor:
        """Rounds to `dtype`."""
        return content.to(self.dtype).contiguous().view(torch.uint8)

    def decode(self, rows: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """Exact where `dtype` is at least as wide."""
        del width
        return rows.contiguous().view(self.dtype).to(dtype)


class Int8(RowFormat):
    """One byte a number, with a scale for each row (2): the error of a number is at most 1/254 of the row's largest."""

    def row_bytes(self, width: int) -> int:
        """The scale, the numbers, and a byte of filling where k is odd."""
        return 4 + width + width % 2

    def encode(self, content: Tensor) -> Tensor:
        """Rounds to the nearest of 255 levels."""
        precise = content.to(torch.float32)
        scale = precise.abs().amax(1, keepdim=True).div_(127)
        levels = (precise / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
        filling = levels.new_zeros(len(levels), content.shape[1] % 2)
        return torch.cat([scale.view(torch.uint8), levels.view(torch.uint8), filling.view(torch.uint8)], dim=1)

    def decode(self, rows: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """Scale times level."""
        scale = rows[:, :4].contiguous().view(torch.float32)
        return (rows[:, 4 : 4 + width].contiguous().view(torch.int8).to(torch.float32) * scale).to(dtype)


WIRES: dict[WireName, RowFormat] = {
    "fp64": Plain(torch.float64),  # for proofs, not for runs
    "fp32": Plain(torch.float32),
    "bf16": Plain(torch.bfloat16),
    "int8": Int8(),
}


@dataclass(frozen=True)
class Wire:
    """How `width` numbers a token travel, under one mark."""

    rows: RowFormat
    width: int
    mark: bytes

    def num_bytes(self, capacity: int) -> int:
        """Bytes of a message with room for `capacity` tokens."""
        return MARK_BYTES + capacity * self.rows.row_bytes(self.width)

    def blank(self, capacity: int) -> Tensor:
        """The shape and type of a message, without memory."""
        return torch.empty(self.num_bytes(capacity) // 2, dtype=DRESS, device="meta", requires_grad=True)

    def pack(self, content: Tensor, capacity: int) -> Tensor:
        """The message of (n, width) numbers; backwards, the numbers in a message of their gradients."""
        return _Pack.apply(content, self, capacity)  # type: ignore[no-any-return, no-untyped-call]

    def unpack(self, message: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
        """(n, width) numbers of a message; backwards, the message of their gradients. WireError for another mark."""
        return _Unpack.apply(message, self, num_tokens, dtype)  # type: ignore[no-any-return, no-untyped-call]

    def written(self, content: Tensor, capacity: int) -> Tensor:
        """The message, without autograd."""
        message = torch.zeros(self.num_bytes(capacity), dtype=torch.uint8, device=content.device)
        message[:MARK_BYTES] = torch.frombuffer(bytearray(self.mark), dtype=torch.uint8).to(content.device)
        encoded = self.rows.encode(content).flatten()
        message[MARK_BYTES : MARK_BYTES + len(encoded)] = encoded
        return message.view(DRESS)

    def read(self, message: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
        """The numbers, without autograd."""
        content = message.detach().contiguous().view(torch.uint8)
        row_bytes = self.rows.row_bytes(self.width)
        if len(content) < self.num_bytes(num_tokens) or (len(content) - MARK_BYTES) % row_bytes:
            raise WireError(
                f"A message of {len(content)} bytes; {num_tokens} tokens of {row_bytes} bytes were agreed on"
            )
        if (mark := bytes(content[:MARK_BYTES].tolist())) != self.mark:
            raise WireError(
                f"A message marked {mark.hex()}, not {self.mark.hex()}: the other stage has another basis, "
                f"or other pipeline settings"
            )
        rows = content[MARK_BYTES : MARK_BYTES + num_tokens * row_bytes].view(num_tokens, row_bytes)
        return self.rows.decode(rows, self.width, dtype)


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, content: Tensor, wire: Wire, capacity: int) -> Tensor:
        ctx.wire, ctx.num_tokens, ctx.dtype = wire, len(content), content.dtype
        return wire.written(content, capacity)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.wire.read(gradients[0], ctx.num_tokens, ctx.dtype), None, None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: Tensor, wire: Wire, num_tokens: int, dtype: torch.dtype) -> Tensor:
        row_bytes = wire.rows.row_bytes(wire.width)
        ctx.wire, ctx.capacity = wire, (2 * len(message) - MARK_BYTES) // row_bytes
        return wire.read(message, num_tokens, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.wire.written(gradients[0], ctx.capacity), None, None, None
