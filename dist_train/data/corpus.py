"""The corpus of a run: tokens, what of them is trained, what is held back, and a fingerprint that members compare.

documents -> tokens -> seeded split by document -> pieces of at most `data.sequence_tokens`
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dist_train.config import ConfigError, DataConfig
from dist_train.data.pieces import Pieces, cut_into_pieces, random_order
from dist_train.data.token_cache import open_token_cache

if TYPE_CHECKING:
    from pathlib import Path

Tokens = NDArray[np.integer[Any]]

# The shuffle of epoch e is keyed (seed, e); no epoch has this number.
SPLIT_KEY = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a run trains on and what it is measured on."""

    tokens: Tokens
    """(n,) all documents one after the other, unsigned; mapped, read-only."""
    training: Pieces
    """In the order of the source."""
    validation: Pieces
    """Documents in a seeded order, so that every prefix is a fair sample; no piece of a single token."""
    fingerprint: str
    """SHA-256 (hex) of tokens, pieces and split. Equal for all members of a run; knows no path and no time."""

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all training pieces: the length of the shuffled stream."""
        return self.training.num_tokens


def open_corpus(data: DataConfig, *, vocab_size: int, seed: int, directory: Path) -> Corpus:
    """The corpus of `data`, tokenized into `directory` unless it lies there already (`RunDirectory.corpus`).

    `vocab_size` is the model's, `seed` the run's. Any number of processes may open it at once. ConfigError as for
    sources and tokenizers, and when documents are too few to train on some and validate on others.
    """
    cache = open_token_cache(data, vocab_size=vocab_size, directory=directory)
    training, validation = _split(data, cache.offsets, seed)
    fingerprint = hashlib.sha256(bytes.fromhex(cache.tokens_sha256))
    for table in (training.starts, training.lengths, validation.starts, validation.lengths):
        fingerprint.update(len(table).to_bytes(8, "little"))
        fingerprint.update(table.astype("<i8").tobytes())
    return Corpus(cache.tokens, training, validation, fingerprint.hexdigest())


def _split(data: DataConfig, offsets: NDArray[np.int64], seed: int) -> tuple[Pieces, Pieces]:
    """The pieces of the documents to train on, and those of the documents to validate on; neither without a target."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    count = len(starts)
    if count < 2:
        raise ConfigError(
            f'data.source = "{data.source}" holds one document; at least 2 are needed, one to train on and one to '
            f"validate on: add another, or set data.document_separator where shards hold several"
        )
    held_back = min(max(1, round(data.validation_fraction * count)), count - 1)
    order = random_order(count, seed, SPLIT_KEY)
    trained, validated = np.sort(order[held_back:]), order[:held_back]
    training = cut_into_pieces(starts[trained], lengths[trained], data.sequence_tokens)
    validation = cut_into_pieces(starts[validated], lengths[validated], data.sequence_tokens)
    for side, pieces in (("training", training), ("validation", validation)):
        if pieces.lengths.max() < 2:
            raise ConfigError(
                f'data.source = "{data.source}": every {side} document is a single token, and one token predicts '
                f"nothing; add longer documents or change data.validation_fraction"
            )
    return training, validation[validation.lengths > 1]
