"""The one abstraction of this package: a codec turns one fragment into bytes, and bytes into an update.

A *fragment* is a named part of the model: several tensors that travel together. A codec sees it as one flat fp32
buffer, laid out as suits the codec (`Layout`): error feedback, aggregation and the outer step work in that layout
too, so a fragment is rearranged once on its way out and once on its way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from compression.scatter import add_at, count_at

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name to shape, in the order in which the fragment lists them."""


class PayloadError(ValueError):
    """A payload is not what the format, or the fragment it claims to be, allows. Says which field, and why."""


class Layout(Protocol):
    """How the tensors of one fragment lie in one flat fp32 buffer, paddings included."""

    shapes: Shapes
    num_values: int
    """Length of the flat buffer."""

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new flat fp32 buffer (num_values,) on the tensors' device; paddings are zero."""
        ...

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors of a flat buffer, in their shapes; they may share its memory."""
        ...


@dataclass(frozen=True)
class Update:
    """One decoded contribution to one fragment: dense, or some places of the flat buffer and nothing elsewhere."""

    positions: Tensor | None
    """(n,) int64, strictly increasing, into the flat buffer; None when dense."""
    values: Tensor
    """(n,) or (num_values,) fp32, all finite."""

    def add_to(self, flat: Tensor, weight: float = 1.0) -> None:
        """Adds `weight` times this update to `flat` in place: for each value one rounded product, one rounded sum."""
        if self.positions is not None and flat.device.type == "cpu":
            add_at(flat, self.positions, self.values, weight)
            return
        values = self.values if weight == 1.0 else self.values * weight
        if self.positions is None:
            flat.add_(values)
        else:
            flat[self.positions] += values

    def count_into(self, counts: Tensor) -> None:
        """Adds one to `counts` (num_values,) wherever this update has a value."""
        if self.positions is None:
            counts.add_(1)
        elif counts.device.type == "cpu":
            count_at(counts, self.positions)
        else:
            counts[self.positions] += 1


class Codec(Protocol):
    """Bytes from a fragment and back. Lossy or not, `decode(encode(x))` is what every receiver will see."""

    name: str

    def layout(self, shapes: Shapes) -> Layout:
        """How a fragment of these shapes lies in the flat buffers given to `encode` and got from `decode`."""
        ...

    def encode(self, flat: Tensor, layout: Layout) -> bytes:
        """The payload of one fragment; `flat` is left as it is."""
        ...

    def decode(self, payload: bytes, layout: Layout, device: torch.device | str = "cpu") -> Update:
        """The update that `payload` carries. PayloadError unless all of it is sound, found before allocating."""
        ...

    def num_values(self, layout: Layout) -> int:
        """Values that a payload of this layout carries: all of them, or those that are kept of each chunk."""
        ...

    def num_bytes(self, layout: Layout, round_number: int | None = None) -> int:
        """Predicted size of a payload: exact for fixed-length codecs, the expected size for entropy-coded ones.

        The latter grow in the first rounds; without `round_number`, after many of them.
        """
        ...
