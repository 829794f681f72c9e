"""Dense codecs: golden bytes, and exactly the rounding that is stated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import PayloadError
from compression.dense import DenseCodec, DenseValues

pytestmark = pytest.mark.timeout(60)

HEAD = "44 54 50 4c 02"
TABLE = "11 00 00 03 6e 2e 61  02  10 02 00 01 62"  # "n.a" (2,); "n." shared, "b" ()
INT8 = "04 02 81 3c  40 81 20  80 5e aa 27"  # 2 / 127; 64, -127, 32
SHAPES: dict[str, tuple[int, ...]] = {"n.a": (2,), "n.b": ()}
ALL: list[DenseValues] = ["fp32", "bf16", "int8"]
LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("values", "payload", "decoded"),
    [
        (
            "fp32",
            f"{HEAD} 01 00 01 02  0c {TABLE} 00 00 80 3f 00 00 00 c0 00 00 00 3f  57 c7 f7 c4",
            [1.0, -2.0, 0.5],
        ),
        (
            "bf16",
            f"{HEAD} 02 00 01 02  06 {TABLE} 80 3f 00 c0 00 3f  07 de ac 0b",
            [1.0, -2.0, 0.5],
        ),
        (
            "int8",
            f"{HEAD} 03 01 02 02  80 02  04 03 {TABLE}{INT8}",
            [64 * 2 / 127, -2.0, 32 * 2 / 127],
        ),
    ],
)
def test_golden_bytes(values: DenseValues, payload: str, decoded: list[float]) -> None:
    codec = DenseCodec(values)
    layout = codec.layout(SHAPES)
    flat = layout.pack({"n.a": torch.tensor([1.0, -2.0]), "n.b": torch.tensor(0.5)})
    assert codec.encode(flat, layout) == bytes.fromhex(payload)
    update = codec.decode(bytes.fromhex(payload), layout)
    assert update.positions is None
    assert torch.equal(update.values, torch.tensor(decoded))
    assert codec.num_bytes(layout) == len(bytes.fromhex(payload))


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.sampled_from(ALL),
    st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=600),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_oracle_rounding_of_any_finite_values(values: DenseValues, numbers: list[float], dtype: torch.dtype) -> None:
    codec = DenseCodec(values)
    layout = codec.layout({"w": (len(numbers),)})
    flat = layout.pack({"w": torch.tensor(numbers).to(dtype).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)})
    payload = codec.encode(flat, layout)
    assert len(payload) == codec.num_bytes(layout)
    got = codec.decode(payload, layout).values
    if values == "fp32":
        assert torch.equal(got.view(torch.int32), flat.view(torch.int32))
    if values == "bf16":
        limit = torch.finfo(torch.bfloat16).max
        assert torch.equal(got, flat.clamp(-limit, limit).bfloat16().float())
    if values == "int8":
        for start in range(0, len(flat), 256):
            block, back = flat[start : start + 256].double(), got[start : start + 256].double()
            scale = block.abs().max() / 127
            assert ((back - block).abs() <= scale * 0.5001 + 1.5e-43).all()


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, 3.39e38, 1e-45, 1e-38, 0.0])
@pytest.mark.parametrize("values", ALL)
def test_extreme_values_stay_finite(values: DenseValues, value: float) -> None:
    codec = DenseCodec(values)
    layout = codec.layout({"w": (300,)})
    got = codec.decode(codec.encode(torch.full((300,), value), layout), layout).values
    torch.testing.assert_close(got, torch.full((300,), value), rtol=2**-7, atol=1e-43)


@pytest.mark.parametrize("values", ALL)
def test_a_value_that_is_not_finite_is_named(values: DenseValues) -> None:
    codec = DenseCodec(values)
    layout = codec.layout(SHAPES)
    with pytest.raises(ValueError, match=r"'n.b' holds nan \(place 2"):
        codec.encode(torch.tensor([1.0, 2.0, float("nan")]), layout)


@pytest.mark.parametrize(
    ("values", "at", "forged", "message"),
    [
        ("fp32", 12, "00 00 c0 7f", "values: number 0 is nan"),
        ("fp32", 4, "00 00 80 ff", "values: number 2 is -inf"),
        ("bf16", 6, "80 7f", "values: number 0 is inf"),
        ("int8", 7, "00 00 c0 7f", "scales: number 0 is nan"),
        ("int8", 7, "00 00 80 bf", "scales: one is negative"),
        ("int8", 3, "80", "codes: -128"),
        ("int8", 7, "ff ff 7f 7f", "values: number 0 is inf"),
    ],
)
def test_forged_values_are_refused(values: DenseValues, at: int, forged: str, message: str, resealed) -> None:  # type: ignore[no-untyped-def]
    codec = DenseCodec(values)
    layout = codec.layout(SHAPES)
    payload = bytearray(codec.encode(torch.tensor([1.0, -2.0, 0.5]), layout))
    start = len(payload) - 4 - at
    payload[start : start + len(bytes.fromhex(forged))] = bytes.fromhex(forged)
    with pytest.raises(PayloadError, match=message):
        codec.decode(resealed(bytes(payload)), layout)


def test_a_width_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'fp8' do not exist; there are: fp32, bf16, int8"):
        DenseCodec("fp8")  # type: ignore[arg-type]
