"""What a user chooses is what is built."""

from __future__ import annotations

import time

import pytest
import torch

from compression.registry import Method, codec_for, prepare

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"method": "sparseloco", "chunk": 16, "k": 4, "value_bits": 1}, "sparseloco"),
        ({"method": "sparseloco", "chunk": 16, "k": 4, "quantizer": "statistical"}, "sparseloco"),
        ({"method": "sparseloco-reference-wire", "chunk": 16, "k": 4}, "sparseloco-reference-wire"),
        ({"method": "diloco"}, "dense-fp32"),
        ({"method": "diloco", "dense_values": "int8"}, "dense-int8"),
        ({"method": "ddp", "dense_values": "bf16"}, "dense-bf16"),
    ],
)
def test_each_method_has_its_codec(arguments, name: str) -> None:  # type: ignore[no-untyped-def]
    codec = codec_for(**arguments)
    assert codec.name == name
    layout = codec.layout({"w": (4, 4)})
    update = codec.decode(codec.encode(layout.pack({"w": torch.ones(4, 4)}), layout), layout)
    flat = torch.zeros(layout.num_values)
    update.add_to(flat)
    assert set(flat.tolist()) <= {0.0, 1.0}


def test_a_method_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="method = 'demo' does not exist; there are: sparseloco, "):
        codec_for("demo")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["sparseloco", "sparseloco-reference-wire", "diloco"])
def test_preparing_makes_the_first_use_a_quick_one(method: Method) -> None:
    codec = codec_for(method)
    prepare(codec)
    layout = codec.layout({"w": (128, 128)})
    started = time.process_time()
    codec.decode(codec.encode(torch.zeros(layout.num_values), layout), layout)
    assert time.process_time() - started < 1.0
