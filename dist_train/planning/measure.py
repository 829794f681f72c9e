"""How fast this machine trains the model of a config: one layer forward and backward, and the codec. A few seconds.

step of n layers = rest + n layer      two models, of one and of two layers, on one micro-batch
layer = t(2) - t(1),   rest = 2 t(1) - t(2)      least of REPEATS each, taken in turns
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
import torch

from compression.registry import prepare
from dist_train.codec import codec_of
from dist_train.data.batches import Batch
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model
from dist_train.planning.architecture import architecture_of
from dist_train.planning.assumptions import Measured
from dist_train.planning.memory import micro_batches_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dist_train.config import Config

REPEATS = 4
MOST_TOKENS = 4096
"""Of the micro-batch that is timed; a larger one is taken to cost in proportion."""
LOOK_S, MOST_BUSY_PERCENT = 0.25, 50.0
"""How long is looked whether others keep the machine busy; above this share of its cores they disturb."""
MOST_CODEC_VALUES = 1 << 24


def measure(config: Config, device: str = "auto") -> Measured:
    """Seconds of one layer and of the rest in one micro-batch, and the codec's speed. Blocks for some seconds."""
    is_disturbed = psutil.cpu_percent(LOOK_S) > MOST_BUSY_PERCENT
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    micro_batch_tokens, _ = micro_batches_of(config)
    tokens = min(micro_batch_tokens, max(MOST_TOKENS, config.data.sequence_tokens))
    one, two = (_step(config, layers, tokens, chosen) for layers in (1, 2))
    times: list[tuple[float, float]] = [(_seconds(one, chosen), _seconds(two, chosen)) for _ in range(REPEATS + 1)]
    one_s, two_s = (min(column) for column in list(zip(*times[1:], strict=True)))
    scale = micro_batch_tokens / tokens
    layer_s = max(two_s - one_s, 0.05 * one_s)
    encode, decode = _codec_speed(config)
    return Measured(
        device=chosen.type,
        layer_s=layer_s * scale,
        head_s=max(one_s - layer_s, 0.0) * scale,
        memory_bytes=_memory_bytes(chosen),
        encode_parameters_per_s=encode,
        decode_parameters_per_s=decode,
        is_disturbed=is_disturbed,
    )


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().total)


def _step(config: Config, layers: int, tokens: int, device: torch.device) -> Callable[[], object]:
    """One inner step of a model with so many layers, and all else as configured."""
    architecture = architecture_of(config.model)
    shape = {
        "path": None,
        "hidden_size": architecture.hidden_size,
        "layers": layers,
        "heads": architecture.heads,
        "kv_heads": architecture.kv_heads,
        "intermediate_size": architecture.intermediate_size,
        "vocab_size": architecture.vocab_size,
    }
    model = build_model(config.model.model_copy(update=shape), 0).to(device)
    inner = InnerOptimizer(model, config.inner.model_copy(update={"micro_batch_tokens": None}), 1)
    length = min(config.data.sequence_tokens, tokens)
    lengths = (length,) * (tokens // length) + ((tokens % length,) if tokens % length else ())
    batch = Batch(torch.randint(architecture.vocab_size, (tokens,)), lengths)

    def step() -> object:
        inner.accumulate(batch)
        return inner.step()

    return step


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    started_s = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


def _codec_speed(config: Config) -> tuple[float, float]:
    """Parameters a second that are encoded, and decoded and added up, on one layer of normal values."""
    codec = codec_of(config)
    prepare(codec)
    shapes, values = {}, 0
    for name, shape in architecture_of(config.model).layer_shapes(0).items():
        if values < MOST_CODEC_VALUES:
            shapes[name] = shape
            values += torch.Size(shape).numel()
    layout = codec.layout(shapes)
    flat = layout.pack({name: torch.randn(shape) for name, shape in shapes.items()})
    payload = codec.encode(flat, layout)
    total = torch.zeros_like(flat)
    encode_s = min(_seconds(lambda: codec.encode(flat, layout), torch.device("cpu")) for _ in range(REPEATS))
    decode_s = min(
        _seconds(lambda: codec.decode(payload, layout).add_to(total), torch.device("cpu")) for _ in range(REPEATS)
    )
    return values / encode_s, values / decode_s
