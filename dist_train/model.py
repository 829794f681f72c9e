"""The model: built from a config and a seed, cut in named fragments, and its loss on a batch."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from dist_train.attention import PACKED
from dist_train.config import ConfigError, ModelConfig
from dist_train.data.batches import NO_TARGET
from dist_train.planning.architecture import default_intermediate_size

if TYPE_CHECKING:
    from dist_train.data.batches import Batch
    from dist_train.sequence.groups import SequenceGroup
    from dist_train.sequence.share import Share

# Longest piece that rotary positions must reach; Llama computes them as they come, so nothing is sized by it.
MAX_POSITIONS = 1 << 20
# Values of a weight drawn at a time.
DRAWN_AT_ONCE = 1 << 18
# Of four 16-bit numbers in 64 bits, the first and the third.
LOW_HALVES = np.uint64(0x0000_FFFF_0000_FFFF)
# The parameters of a Llama-family model, by where transformers puts them.
FRAGMENT_PATTERNS = (
    (re.compile(r"model\.embed_tokens\."), "embed"),
    (re.compile(r"model\.layers\.(\d+)\."), "layer.{}"),
    (re.compile(r"model\.norm\.|lm_head\."), "head"),
)


def model_vocab_size(config: ModelConfig) -> int:
    """Tokens that the model of `config` knows; ConfigError as for `build_model`."""
    return int(architecture_of(config).vocab_size)


def build_model(config: ModelConfig, seed: int) -> nn.Module:
    """The model of `config` in fp32 on the CPU, its weights drawn from `seed` alone, in training mode.

    The bits are the same on every machine: replicas must start equal, and torch's normal numbers differ between
    processors. The caller's random state stays as it was. ConfigError when `model.path` holds no config of a causal
    model.
    """
    with torch.random.fork_rng(devices=[]):
        model = _unfilled(config)
    draw_weights(model, seed)
    return model.train()


def model_without_memory(config: ModelConfig) -> nn.Module:
    """The model on the device `meta`: its layout, for whoever gives memory to a part of it."""
    with torch.device("meta"):
        return _unfilled(config)


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Draws every matrix that `model` has; what it lacks changes nothing for the others."""
    architecture: Any = model.config
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.copy_(drawn_weight(name, parameter.shape, seed, architecture.initializer_range))


def fragment_shapes(config: ModelConfig) -> dict[str, dict[str, torch.Size]]:
    """The shapes of all trainable parameters by fragment and name, in the model's order; draws no weight."""
    model = model_without_memory(config)
    return {fragment: {name: p.shape for name, p in named.items()} for fragment, named in fragments(model).items()}


def drawn_weight(name: str, shape: torch.Size, seed: int, std: float) -> Tensor:
    """The initial fp32 weight called `name`, of `shape`: bell-shaped around 0 with `std`, within 3.5 of them.

    Each value is a sum of four 16-bit numbers, centred, times one constant: whole numbers and one rounding, which no
    processor does differently. It depends on no other weight, so that a stage can draw its own.
    """
    key = np.array([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")], dtype=np.uint64)
    generator, weight = np.random.Philox(key=key), np.empty(math.prod(shape), dtype=np.float32)
    scale = np.float32(std * math.sqrt(3) / 2**16)  # the sum of four has variance 4 * 2^32 / 12
    for start in range(0, len(weight), DRAWN_AT_ONCE):
        part = weight[start : start + DRAWN_AT_ONCE]
        bits = generator.random_raw(len(part))
        pairs = (bits & LOW_HALVES) + ((bits >> np.uint64(16)) & LOW_HALVES)  # two sums of two, 32 bits apart
        sums = ((pairs >> np.uint64(32)) + (pairs & np.uint64(2**32 - 1))).astype(np.int32)
        part[:] = (sums - 2 * (2**16 - 1)).astype(np.float32) * scale
    return torch.from_numpy(weight).view(shape)


def fragments(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The trainable parameters by fragment and name: `embed`, `layer.0` to `layer.N-1`, `head`, in this order.

    Each is in exactly one fragment; a head tied to the embedding is in `embed`. A stage of a pipeline has the
    fragments of its parameters only. ValueError when a parameter fits none: the model is no Llama in its layout.
    """
    found = dict[str, dict[str, nn.Parameter]]()
    for name, parameter in model.named_parameters():  # a tied one appears once, as the embedding
        if parameter.requires_grad:
            found.setdefault(_fragment_of(name), {})[name] = parameter
    return {name: found[name] for name in sorted(found, key=_fragment_position)}


def loss_sum(model: nn.Module, batch: Batch | Share, sequence_group: SequenceGroup | None = None) -> Tensor:
    """Sum over the targets of `batch` of the next-token cross-entropy (nats), a scalar on the model's device.

    A share of documents is computed by all ranks of its `sequence_group` together; each has the sum of its own targets.
    """
    device = next(model.parameters()).device
    told = packing(batch, device) | {"sequence_group": sequence_group}
    return loss_of_logits(model(batch.tokens.to(device)[None], **told).logits[0], batch)


def packing(batch: Batch | Share, device: torch.device) -> dict[str, Any]:
    """What a model must be told of `batch` beside its tokens: how its documents lie."""
    return {
        "position_ids": batch.position_ids.to(device)[None],
        "use_cache": False,
        "document_lengths": batch.document_lengths,
    }


def loss_of_logits(logits: Tensor, batch: Batch | Share) -> Tensor:
    """The loss sum of `batch`, given its (n, vocabulary) logits."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(precise, batch.targets.to(logits.device), ignore_index=NO_TARGET, reduction="sum")


def _unfilled(config: ModelConfig) -> nn.Module:
    """The model with whatever weights transformers gives it."""
    try:
        model = AutoModelForCausalLM.from_config(
            architecture_of(config), dtype=torch.float32, attn_implementation=PACKED
        )
    except (ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f'model.path = "{config.path}" makes no causal language model: {reason}') from None
    if not isinstance(model, nn.Module):
        raise TypeError(f"transformers built a {type(model).__name__}")
    return model


def architecture_of(config: ModelConfig) -> Any:
    """The transformers config of the model; ConfigError when `model.path` holds none."""
    if config.path is not None:
        return _architecture_at(Path(config.path).expanduser())
    return LlamaConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads or config.heads,
        intermediate_size=config.intermediate_size or default_intermediate_size(config.hidden_size),
        vocab_size=config.vocab_size,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


def _architecture_at(directory: Path) -> Any:
    if not (directory / "config.json").is_file():
        raise ConfigError(f'model.path = "{directory}" holds no config.json; name a local Hugging Face directory')
    try:
        return AutoConfig.from_pretrained(str(directory), local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f'model.path = "{directory}": config.json cannot be used: {reason}') from None


def _fragment_of(parameter_name: str) -> str:
    for pattern, fragment in FRAGMENT_PATTERNS:
        if match := pattern.match(parameter_name):
            return fragment.format(*match.groups())
    raise ValueError(
        f"Parameter {parameter_name} belongs to no fragment; models laid out as Llama "
        f"(model.embed_tokens, model.layers, model.norm, lm_head) can be trained"
    )


def _fragment_position(fragment: str) -> tuple[int, int]:
    kind, _, layer = fragment.partition(".")
    return ("embed", "layer", "head").index(kind), int(layer or 0)


def every_gradient(model: nn.Module) -> list[Tensor]:
    """The gradient of each trained parameter; one that has got none has zeros from now on."""
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    return gradients
