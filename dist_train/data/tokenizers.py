"""Texts to tokens: plain bytes, or any tokenizer that lies in a local Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from dist_train.config import ConfigError, DataConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

Tokens = NDArray[np.integer[Any]]


class Tokenizer(Protocol):
    """What the corpus asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest token that `encode` can give."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text, (n,) integers; texts together, because that is faster."""


class ByteTokenizer:
    """Token = byte of the UTF-8 text. Nothing is added."""

    vocab_size = 256

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The bytes of each text, (n,) uint8."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]


class HuggingFaceTokenizer:
    """The tokenizer in `directory`; each text ends with its end-of-text token where it has one, and begins with none.

    ConfigError when the directory holds no tokenizer. Nothing is downloaded and no code of the directory is run.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ConfigError(
                f'data.tokenizer = "{directory}" is no directory; use "bytes" or a tokenizer\'s directory'
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        # The loader raises whatever the file's parser raises, plain Exception among it.
        except Exception as error:  # noqa: BLE001
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f'data.tokenizer = "{directory}" cannot be loaded: {reason}') from None
        self._eos: list[int] = [] if self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]
        # Not len(): ids may have holes.
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text, (n,) int64, with the end-of-text token."""
        if not texts:
            return []
        # verbose: no warning about texts longer than the model's context; they are cut later.
        ids = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        return [np.array([*tokens, *self._eos], dtype=np.int64) for tokens in ids]


def load_tokenizer(config: DataConfig, model_vocab_size: int) -> Tokenizer:
    """The tokenizer named by `data.tokenizer`; ConfigError when the model's vocabulary does not hold its tokens."""
    tokenizer: Tokenizer
    tokenizer = (
        ByteTokenizer() if config.tokenizer == "bytes" else HuggingFaceTokenizer(Path(config.tokenizer).expanduser())
    )
    if model_vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {model_vocab_size} is less than the {tokenizer.vocab_size} tokens of data.tokenizer = "
            f'"{config.tokenizer}"; raise it to {tokenizer.vocab_size}'
        )
    return tokenizer
