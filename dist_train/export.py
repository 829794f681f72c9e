"""From a run to a Hugging Face model directory that `AutoModelForCausalLM.from_pretrained` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from dist_train.checkpoint import newest_outer
from dist_train.config import Config, ConfigError
from dist_train.model import build_model
from dist_train.run_directory import RunDirectory


def export(config: Config, directory: RunDirectory, output: Path) -> int:
    """Writes the outer parameters of the newest checkpoint to `output` and returns their round.

    ConfigError when something is in `output`; CheckpointError when there is no checkpoint or it can't be read; OSError
    when `output` can't be written.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty: choose another folder")
    info, theta = newest_outer(directory.checkpoints)
    model = build_model(config.model, config.run.seed)
    parameters: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in theta.items():
            parameters[name].copy_(tensor)
    disable_progress_bar()  # a second's work
    writer: Any = model  # what transformers adds to a Module
    writer.save_pretrained(output)
    if config.data.tokenizer != "bytes":
        AutoTokenizer.from_pretrained(config.data.tokenizer, local_files_only=True).save_pretrained(output)
    return info.round
