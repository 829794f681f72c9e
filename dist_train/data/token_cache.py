"""Tokenized documents in one file, built once a machine and mapped by all of its processes.

The folder's name is a digest of what the documents are made of (source, tokenizer, names, sizes and times of files),
so that a changed file is a new folder. It appears by a rename, whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dist_train.config import ConfigError, DataConfig
from dist_train.data.sources import TOKEN_KINDS, documents, source_files, source_kind
from dist_train.data.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dist_train.data.tokenizers import Tokenizer

Tokens = NDArray[np.integer[Any]]

# Part of every key: raise it when what lies in the folder, or a rule by which it is made, changes.
LAYOUT_VERSION = 1
# Texts handed to the tokenizer at a time.
TEXTS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class TokenCache:
    """All documents of a source, one after the other."""

    tokens: Tokens
    """(n,) the smallest unsigned type that holds the vocabulary; mapped, read-only."""
    offsets: NDArray[np.int64]
    """(documents + 1,) first token of each document, and n. No document is empty."""
    tokens_sha256: str
    """Digest (hex) of the tokens and their type."""


def open_token_cache(data: DataConfig, *, vocab_size: int, directory: Path) -> TokenCache:
    """The tokens of `data` in a folder of `directory`, made there unless it exists; ConfigError when they cannot be.

    `vocab_size` is the model's. Any number of processes may do this at once.
    """
    folder = directory / _key(data, vocab_size)
    if not folder.is_dir():
        _build(data, vocab_size, folder)
    facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    tokens = np.memmap(folder / "tokens.bin", dtype=facts["dtype"], mode="r")
    return TokenCache(tokens, np.load(folder / "offsets.npy"), facts["tokens_sha256"])


def _key(data: DataConfig, vocab_size: int) -> str:
    made_of = {
        "layout": LAYOUT_VERSION,
        "vocab_size": vocab_size,
        "data": data.model_dump(include={"source", "tokenizer", "text_field", "token_dtype", "document_separator"}),
        "files": [_identity(path) for path in (*source_files(data), *_tokenizer_files(data))],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _identity(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path.absolute()), facts.st_size, facts.st_mtime_ns


def _tokenizer_files(data: DataConfig) -> list[Path]:
    if data.tokenizer == "bytes":
        return []
    return sorted(path for path in Path(data.tokenizer).expanduser().glob("*") if path.is_file())


def _build(data: DataConfig, vocab_size: int, folder: Path) -> None:
    """Tokenizes into a folder of its own and moves that to `folder`, unless another process was faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    try:
        _write(data, vocab_size, building)
        try:
            building.rename(folder)
        except OSError as error:
            # A folder that holds files is never replaced: the first builder wins, and all build the same.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(data: DataConfig, vocab_size: int, folder: Path) -> None:
    tokenizer = None if source_kind(data) in TOKEN_KINDS else load_tokenizer(data, vocab_size)
    dtype = np.dtype(np.min_scalar_type((tokenizer.vocab_size if tokenizer else vocab_size) - 1)).newbyteorder("<")
    digest, lengths = hashlib.sha256(dtype.str.encode()), array("q")
    with (folder / "tokens.bin").open("wb") as file:
        for document in _tokenized(data, vocab_size, tokenizer):
            content = np.ascontiguousarray(document, dtype=dtype).data
            file.write(content)
            digest.update(content)
            lengths.append(len(document))
        file.flush()
        os.fsync(file.fileno())
    if not lengths:
        raise ConfigError(f'data.source = "{data.source}" holds no token at all; name files that are not empty')
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    facts = {"dtype": dtype.str, "tokens_sha256": digest.hexdigest()}
    (folder / "corpus.json").write_text(json.dumps(facts), encoding="utf-8")


def _tokenized(data: DataConfig, vocab_size: int, tokenizer: Tokenizer | None) -> Iterator[Tokens]:
    """The documents that are not empty, as tokens."""
    found = (document for document in documents(data, vocab_size) if len(document))
    if tokenizer is None:
        yield from (document for document in found if not isinstance(document, str))
        return
    texts = (document for document in found if isinstance(document, str))
    while group := list(islice(texts, TEXTS_AT_ONCE)):
        yield from (tokens for tokens in tokenizer.encode(group) if len(tokens))
