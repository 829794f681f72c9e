"""The published code's widths: 72 bits for each value, and the same values as the statistical quantizer in fewer."""

from __future__ import annotations

import pytest
import torch

from compression.codec import PayloadError
from compression.reference_wire import ReferenceWireCodec
from compression.sparse import SparseCodec

pytestmark = pytest.mark.timeout(60)


def test_seventy_two_bits_a_value_for_the_same_update() -> None:
    reference, ours = ReferenceWireCodec(16, 4), SparseCodec(16, 4, 2, "statistical")
    shapes = {"w": (9, 10), "b": (3,)}
    layout = reference.layout(shapes)
    generator = torch.Generator().manual_seed(0)
    flat = layout.pack({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})
    payload = reference.encode(flat, layout)
    kept = sum(min(4, n) for n in layout.num_real.tolist())
    frame = 4 + 1 + 1 + 1 + 1 + 1 + 6 + (2 + 1 + 1) + (4 + 1 + 2) + (4 + 1 + 1)
    assert len(payload) == reference.num_bytes(layout) == frame + 9 * kept + 2 * 4 * 4 + 4
    theirs, same = reference.decode(payload, layout), ours.decode(ours.encode(flat, layout), layout)
    assert torch.equal(theirs.values, same.values)
    assert theirs.positions is not None
    assert same.positions is not None
    assert torch.equal(theirs.positions, same.positions)


@pytest.mark.parametrize(
    ("from_end", "byte", "message"), [(1, 4, "codes: 4 has more than 2"), (18, 0x80, "places: 92233720")]
)
def test_room_that_the_widths_leave_is_refused(from_end: int, byte: int, message: str, resealed) -> None:  # type: ignore[no-untyped-def]
    codec = ReferenceWireCodec(4, 1)
    layout = codec.layout({"w": (2, 2)})
    payload = bytearray(codec.encode(torch.tensor([0.0, 1, 0, 0]), layout))
    payload[-4 - from_end] = byte
    with pytest.raises(PayloadError, match=message):
        codec.decode(resealed(bytes(payload)), layout)
