"""Codecs that send every value: what DiLoCo and data parallelism are measured with.

    dense-fp32   as it is, 32 bits                                                              lossless
    dense-bf16   nearest bf16, 16 bits; above the largest bf16, that one                        (1)
    dense-int8   blocks of 256 values, 8 bits each and one fp32 scale a block, 8.125 bits:
                 scale = max |v| / 127,  code = clamp(round_half_even(v / scale), -127, 127)    (2)
                 v = code * scale                                                               (3)

Each is elementwise but for the maximum of a block, so the bytes are the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from compression.codec import PayloadError, Update
from compression.layout import FlatLayout, check_flat
from compression.quantizer import check_finite
from compression.wire import Frame, Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from compression.codec import Layout, Shapes

DenseValues = Literal["fp32", "bf16", "int8"]
BLOCK = 256
"""Values that share one int8 scale."""
_LARGEST_BF16 = torch.finfo(torch.bfloat16).max
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
"""127 times it is still finite."""


class DenseCodec:
    """Every value of a fragment, in one of three widths. A `compression.codec.Codec`."""

    def __init__(self, values: DenseValues = "fp32") -> None:
        ids = {"fp32": 1, "bf16": 2, "int8": 3}
        if values not in ids:
            raise ValueError(f"dense values {values!r} do not exist; there are: {', '.join(ids)}")
        self.values = values
        self.name = f"dense-{values}"
        self.codec_id = ids[values]

    def layout(self, shapes: Shapes) -> FlatLayout:
        """Tensors one after another."""
        return FlatLayout(shapes)

    def encode(self, flat: Tensor, layout: Layout) -> bytes:
        """The payload of (num_values,) fp32 values on any device. ValueError if one is not finite."""
        check_flat(flat, layout.num_values)
        flat = flat.detach()
        finite = flat.isfinite()
        if not finite.all():
            worst = int((~finite).nonzero()[0])
            raise ValueError(
                f"Tensor {_name_at(worst, layout)!r} holds {flat[worst].item()} (place {worst} of the flat buffer); "
                f"only finite values can be sent. Has the inner optimizer diverged?"
            )
        return self._frame(layout).seal(self._streams(flat))

    def decode(self, payload: bytes, layout: Layout, device: torch.device | str = "cpu") -> Update:
        """The dense update; PayloadError names the field that is wrong, and why."""
        lengths = [(length, length) for length in self._lengths(layout)]
        values = self._values(self._frame(layout).unseal(payload, lengths))
        return Update(None, torch.from_numpy(check_finite(values, "values")).to(device))

    def num_values(self, layout: Layout) -> int:
        """All values of the fragment."""
        return layout.num_values

    def num_bytes(self, layout: Layout, round_number: int | None = None) -> int:  # noqa: ARG002 - the seam's
        """Exact size of a payload."""
        lengths = self._lengths(layout)
        return self._frame(layout).overhead_bytes(lengths) + sum(lengths)

    def _streams(self, flat: Tensor) -> Sequence[bytes]:
        if self.values == "fp32":
            return [_bytes(flat.cpu().numpy(), "<f4")]
        if self.values == "bf16":
            rounded = flat.clamp(-_LARGEST_BF16, _LARGEST_BF16).to(torch.bfloat16)  # (1)
            return [_bytes(rounded.view(torch.int16).cpu().numpy(), "<i2")]
        blocks = _blocks(flat.cpu().numpy())
        scales = np.minimum(np.abs(blocks).max(axis=1) / np.float32(127), _LARGEST_SCALE)
        codes = np.rint(blocks / np.where(scales > 0, scales, np.float32(1))[:, None])
        codes = np.clip(codes, -127, 127).astype(np.int8)  # (2)
        return [_bytes(scales, "<f4"), codes.reshape(-1)[: len(flat)].tobytes()]

    def _values(self, streams: Sequence[memoryview]) -> NDArray[np.float32]:
        if self.values == "fp32":
            return np.frombuffer(streams[0], "<f4").astype(np.float32)
        if self.values == "bf16":
            return (np.frombuffer(streams[0], "<u2").astype(np.uint32) << 16).view(np.float32)
        scales, codes = np.frombuffer(streams[0], "<f4"), np.frombuffer(streams[1], np.int8)
        check_finite(scales, "scales")
        if (np.signbit(scales)).any():
            raise PayloadError("scales: one is negative")
        if codes.min() == -128:
            raise PayloadError("codes: -128 is not a code")
        with np.errstate(over="ignore", invalid="ignore"):
            values: NDArray[np.float32] = _blocks(codes.astype(np.float32)) * scales[:, None]  # (3)
        return values.reshape(-1)[: len(codes)]

    def _lengths(self, layout: Layout) -> list[int]:
        if self.values == "int8":
            return [4 * -(-layout.num_values // BLOCK), layout.num_values]
        return [layout.num_values * (4 if self.values == "fp32" else 2)]

    def _frame(self, layout: Layout) -> Frame:
        if self.values == "int8":
            return Frame(self.codec_id, (Parameter("block", BLOCK),), ("scales", "codes"), layout.shapes)
        return Frame(self.codec_id, (), ("values",), layout.shapes)


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) as (blocks, 256), the last block filled up with zeros; a view where it fits."""
    rest = -len(values) % BLOCK
    return (np.pad(values, (0, rest)) if rest else values).reshape(-1, BLOCK)


def _bytes(array: NDArray[np.generic], form: str) -> bytes:
    return array.astype(form, copy=False).tobytes()


def _name_at(place: int, layout: Layout) -> str:
    """The tensor that a place of a FlatLayout's buffer belongs to."""
    for name, shape in layout.shapes.items():
        place -= int(np.prod(shape))
        if place < 0:
            return name
    raise IndexError(place)
