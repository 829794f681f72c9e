"""What a message holds arrives, forwards and backwards, in the bytes that were promised; nothing else is accepted."""

from __future__ import annotations

import pytest
import torch

from dist_train.pipeline.wire import MARK_BYTES, WIRES, Wire, WireError, WireName

MARK = bytes(range(MARK_BYTES))
# Largest error of a number, as a share of the largest of its row.
ERRORS: dict[WireName, float] = {"fp64": 0.0, "fp32": 2**-24, "bf16": 2**-8, "int8": 1 / 253}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("width", [1, 5, 8])
def test_numbers_and_gradients_arrive(name: WireName, width: int) -> None:
    wire = Wire(WIRES[name], width, MARK)
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(7, width, dtype=torch.float64, generator=generator).requires_grad_()
    gradient = torch.randn(7, width, dtype=torch.float64, generator=generator)
    message = wire.pack(content, 10)
    assert message.nbytes == wire.num_bytes(10) == wire.blank(10).nbytes
    arrived = wire.unpack(message, 7, torch.float64)
    torch.autograd.backward(arrived, gradient)
    assert content.grad is not None
    for found, wanted in ((arrived, content), (content.grad, gradient)):
        assert ((found - wanted).abs() <= ERRORS[name] * wanted.abs().amax(1, keepdim=True)).all()


def test_a_row_of_zeros_stays_zero() -> None:
    for rows in WIRES.values():
        wire = Wire(rows, 4, MARK)
        assert not wire.unpack(wire.pack(torch.zeros(2, 4), 3), 2, torch.float32).any()


@pytest.mark.parametrize("name", ERRORS)
def test_a_message_of_another_basis_is_refused(name: WireName) -> None:
    ours, theirs = Wire(WIRES[name], 4, MARK), Wire(WIRES[name], 4, bytes(MARK_BYTES))
    with pytest.raises(WireError, match="another basis"):
        ours.unpack(theirs.pack(torch.ones(2, 4), 3), 2, torch.float32)
    message = ours.pack(torch.ones(2, 4, requires_grad=True), 3)
    with pytest.raises(WireError, match="another basis"):  # gradients are marked as well
        torch.autograd.backward(message, theirs.written(torch.ones(2, 4), 3))


def test_a_message_with_too_few_rows_is_refused() -> None:
    wire = Wire(WIRES["bf16"], 4, MARK)
    with pytest.raises(WireError, match="3 tokens of 8 bytes"):
        wire.unpack(wire.pack(torch.ones(2, 4), 2), 3, torch.float32)


def test_the_bytes_of_a_row_by_hand() -> None:
    assert [WIRES[name].row_bytes(16) for name in ("fp32", "bf16", "int8")] == [64, 32, 20]
    wire = Wire(WIRES["int8"], 3, MARK)
    message = wire.pack(torch.tensor([[127.0, -1.0, 0.0]]), 1).detach().view(torch.uint8).tolist()
    assert message == [*MARK, 0, 0, 0x80, 0x3F, 127, 255, 0, 0]  # scale 1.0, three levels, a byte of filling
