"""Documents from `data.source`, one after the other, the same everywhere.

A document is a text, or an array of tokens where the source is tokenized already. Files are read in sorted order and
never more than a row group, a line or a file of text at a time. Whatever cannot be read is a ConfigError that names
the place: nothing is left out silently, but for undecodable files of the standard library.
"""

from __future__ import annotations

import glob
import json
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_train.config import ConfigError, DataConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Tokens = NDArray[np.integer[Any]]
Document = str | Tokens

STDLIB = "python-stdlib"
TOKEN_KINDS = ("bin", "npy")
# Not the library's own text, or (the two files) written for the machine it is installed on.
STDLIB_WITHOUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
STDLIB_WITHOUT_FILES = ("_sysconfigdata*.py", "sitecustomize.py")
# Tokens looked at together when a shard is searched or checked.
SCAN_TOKENS = 1 << 24


def source_kind(config: DataConfig) -> str:
    """What stands before the colon of `data.source`; ConfigError when no reader has that name."""
    kind, _, pattern = config.source.partition(":")
    if config.source == STDLIB or (kind in READERS and pattern):
        return kind
    forms = ", ".join(f"{name}:GLOB" for name in READERS)
    raise ConfigError(f'data.source = "{config.source}" is no source; use {STDLIB}, {forms}')


def source_files(config: DataConfig) -> list[Path]:
    """The files of `data.source`, sorted; ConfigError when there is none."""
    if source_kind(config) == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        return sorted(path for path in root.rglob("*.py") if _is_stdlib_text(path.relative_to(root)))
    pattern = config.source.partition(":")[2]
    matches = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207 (takes absolute patterns)
    files = sorted(path for path in map(Path, matches) if path.is_file())
    if not files:
        raise ConfigError(
            f'data.source = "{config.source}" matches no file (looked from {Path.cwd()}); check the pattern'
        )
    return files


def documents(config: DataConfig, vocab_size: int) -> Iterator[Document]:
    """The documents of `data.source`, empty ones included.

    `vocab_size` is the model's: a token of a shard that is not below it is a ConfigError naming file and position.
    """
    kind = source_kind(config)
    if kind in TOKEN_KINDS and config.document_separator is not None and config.document_separator >= vocab_size:
        raise ConfigError(
            f"data.document_separator = {config.document_separator} is no token of a vocabulary of {vocab_size}; "
            f"raise model.vocab_size or change the separator"
        )
    for path in source_files(config):
        try:
            yield from _stdlib_text(path) if kind == STDLIB else READERS[kind](path, config, vocab_size)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{path}: cannot be read: {reason}; mend the file or leave it out") from None


def _is_stdlib_text(relative: Path) -> bool:
    return STDLIB_WITHOUT.isdisjoint(relative.parts) and not any(map(relative.match, STDLIB_WITHOUT_FILES))


def _stdlib_text(path: Path) -> Iterator[str]:
    try:
        yield path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return


def _text(path: Path, config: DataConfig, vocab_size: int) -> Iterator[str]:
    del config, vocab_size
    try:
        yield path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; convert the file or leave it out") from None


def _jsonl(path: Path, config: DataConfig, vocab_size: int) -> Iterator[str]:
    del vocab_size
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _text_of_line(line, config.text_field, f"{path}:{number}")


def _text_of_line(line: bytes, field: str, place: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:  # JSONDecodeError, or UnicodeDecodeError
        raise ConfigError(f"{place}: not JSON: {error}; each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: a {type(record).__name__}; each line must be one JSON object")
    if field not in record:
        known = ", ".join(record) or "none"
        raise ConfigError(f'{place}: no field "{field}"; set data.text_field to one of the fields there: {known}')
    text = record[field]
    if not isinstance(text, str):
        raise ConfigError(f'{place}: field "{field}" holds a {type(text).__name__}, not a text; set data.text_field')
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f'{place}: field "{field}" holds half of a surrogate pair, which is no text; mend the line')
    return text


def _parquet(path: Path, config: DataConfig, vocab_size: int) -> Iterator[str]:
    del vocab_size
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path}: not a Parquet file: {error}") from None
    with file:
        names, column = file.schema_arrow.names, config.text_field
        if column not in names:
            raise ConfigError(f'{path}: no column "{column}"; set data.text_field to one of: {", ".join(names)}')
        type_ = file.schema_arrow.field(column).type
        if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
            raise ConfigError(f'{path}: column "{column}" holds {type_}, not text; set data.text_field')
        for group in range(file.num_row_groups):
            for text in file.read_row_group(group, columns=[column]).column(column):
                yield text.as_py() or ""


def _bin(path: Path, config: DataConfig, vocab_size: int) -> Iterator[Tokens]:
    dtype = np.dtype(config.token_dtype).newbyteorder("<")
    size_bytes = path.stat().st_size
    if size_bytes % dtype.itemsize:
        raise ConfigError(
            f"{path}: {size_bytes} bytes are no whole number of {config.token_dtype} tokens; set data.token_dtype"
        )
    if size_bytes:  # an empty file cannot be mapped
        yield from _documents_of_shard(np.memmap(path, dtype=dtype, mode="r"), path, config, vocab_size)


def _npy(path: Path, config: DataConfig, vocab_size: int) -> Iterator[Tokens]:
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(f"{path}: not a .npy array: {error}") from None
    if not isinstance(shard, np.ndarray) or shard.ndim != 1 or not np.issubdtype(shard.dtype, np.integer):
        found = f"{shard.dtype} of shape {shard.shape}" if isinstance(shard, np.ndarray) else "an archive"
        raise ConfigError(f"{path}: {found}; a shard is one array of integers with one dimension")
    yield from _documents_of_shard(shard, path, config, vocab_size)


def _documents_of_shard(shard: Tokens, path: Path, config: DataConfig, vocab_size: int) -> Iterator[Tokens]:
    """Cuts `shard` (n,) after each separator, which stays with the document that it ends."""
    start = 0
    for scanned in range(0, len(shard), SCAN_TOKENS):
        window = shard[scanned : scanned + SCAN_TOKENS]
        _check_tokens(window, scanned, path, vocab_size)
        if config.document_separator is not None:
            for stop in (scanned + 1 + np.flatnonzero(window == config.document_separator)).tolist():
                yield shard[start:stop]
                start = stop
    yield shard[start:]


def _check_tokens(window: Tokens, first_position: int, path: Path, vocab_size: int) -> None:
    outside = (window >= vocab_size) | (window < 0)
    if outside.any():
        at = int(outside.argmax())
        raise ConfigError(
            f"{path}: token {window[at]} at position {first_position + at} is outside of the vocabulary "
            f"(model.vocab_size = {vocab_size}); raise it, or check data.token_dtype"
        )


READERS: dict[str, Callable[[Path, DataConfig, int], Iterator[Document]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "bin": _bin,
    "npy": _npy,
}
