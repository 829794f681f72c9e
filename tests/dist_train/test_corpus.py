"""The corpus holds every token once, splits by document, and has one fingerprint wherever it lies."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.config import ConfigError, DataConfig
from dist_train.data.corpus import Corpus, open_corpus
from dist_train.data.pieces import Pieces, balanced_parts, cut_into_pieces

TEXTS = [b"a" * 700, b"", b"b", b"some words " * 30, b"c" * 512, b"\xc3\xa4" * 100, b"d" * 513]


def write_texts(folder: Path, texts: list[bytes] = TEXTS) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_bytes(text)
    return f"text:{folder}/*.txt"


def opened(source: str, directory: Path, *, seed: int = 0, vocab_size: int = 256, **data: object) -> Corpus:
    config = DataConfig.model_validate({"source": source, **data})
    return open_corpus(config, vocab_size=vocab_size, seed=seed, directory=directory)


def texts_of(corpus: Corpus, pieces: Pieces) -> list[bytes]:
    spans = zip(pieces.starts, pieces.lengths, strict=True)
    return [corpus.tokens[start : start + length].tobytes() for start, length in spans]


def test_training_and_validation_share_no_document_and_lose_none(tmp_path: Path) -> None:
    corpus = opened(write_texts(tmp_path / "t"), tmp_path, sequence_tokens=1000, validation_fraction=0.4)
    trained, validated = texts_of(corpus, corpus.training), texts_of(corpus, corpus.validation)
    assert {*trained, *validated, b"b"} == {text for text in TEXTS if text}  # b"b" validated would predict nothing
    assert not set(trained) & set(validated)
    assert corpus.tokens.tobytes() == b"".join(TEXTS)
    assert corpus.tokens_per_epoch == sum(map(len, trained))


def test_validation_holds_its_fraction_of_the_documents(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "t", [bytes([n]) * 3 for n in range(100)])
    assert len(opened(source, tmp_path, validation_fraction=0.07).validation) == 7
    assert len(opened(source, tmp_path, validation_fraction=1e-9).validation) == 1
    assert len(opened(source, tmp_path, validation_fraction=1 - 1e-9).training) == 1


def test_the_split_follows_the_seed(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "t", [bytes([n]) * 3 for n in range(100)])
    corpora = [opened(source, tmp_path, seed=seed, validation_fraction=0.2) for seed in (1, 1, 2)]
    first, again, other = (set(texts_of(corpus, corpus.validation)) for corpus in corpora)
    assert first == again != other


@given(st.lists(st.integers(1, 40), min_size=1, max_size=10), st.integers(1, 12))
def test_pieces_cover_each_document_once_and_are_whole_where_they_fit(lengths: list[int], most: int) -> None:
    ends = np.cumsum(lengths, dtype=np.int64)
    pieces = cut_into_pieces(ends - lengths, np.array(lengths), most)
    covered = [t for s, n in zip(pieces.starts, pieces.lengths, strict=True) for t in range(s, s + n)]
    assert covered == list(range(sum(lengths)))
    assert pieces.lengths.min() >= 1
    assert pieces.lengths.max() <= most
    assert len(pieces) == sum(-(-n // most) for n in lengths)  # as few as can be
    assert not [s for s, n in zip(pieces.starts, pieces.lengths, strict=True) if any(s < e < s + n for e in ends)]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 9))
def test_parts_keep_order_and_are_balanced_to_a_piece(lengths: list[int], count: int) -> None:
    pieces = Pieces(np.arange(len(lengths)), np.array(lengths, dtype=np.int64))
    parts = balanced_parts(pieces, count)
    assert len(parts) == count
    assert [s for part in parts for s in part.starts] == list(range(len(lengths)))
    assert all(abs(part.num_tokens - pieces.num_tokens / count) <= max(lengths, default=0) for part in parts)


def test_the_fingerprint_knows_no_path_and_no_time(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "deep"
    first = opened(write_texts(here), tmp_path / "cache-1")
    shutil.copytree(here, there)
    os.utime(there / "000.txt", (1, 1))
    assert opened(f"text:{there}/*.txt", tmp_path / "cache-2").fingerprint == first.fingerprint


def test_the_fingerprint_is_the_same_from_text_and_from_shards_of_its_tokens(tmp_path: Path) -> None:
    texts = [text + b"\0" for text in TEXTS]
    np.frombuffer(b"".join(texts), dtype=np.uint8).astype("<u2").tofile(tmp_path / "all.bin")
    shard = opened(f"bin:{tmp_path}/all.bin", tmp_path / "1", document_separator=0)
    assert shard.fingerprint == opened(write_texts(tmp_path / "t", texts), tmp_path / "2").fingerprint


def test_the_fingerprint_changes_with_whatever_members_must_share(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "t")
    moved_boundary = write_texts(tmp_path / "moved", [TEXTS[0][:-1], TEXTS[0][:1], *TEXTS[2:]])
    found = [
        opened(source, tmp_path),
        opened(source, tmp_path, seed=1),
        opened(source, tmp_path, sequence_tokens=100),
        opened(source, tmp_path, validation_fraction=0.5),
        opened(write_texts(tmp_path / "o", [*TEXTS[:-1], TEXTS[-1][:-1] + b"e"]), tmp_path),
        opened(moved_boundary, tmp_path),
    ]
    assert len({corpus.fingerprint for corpus in found}) == len(found)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    source, cache = write_texts(tmp_path / "t"), tmp_path / "cache"
    first = opened(source, cache)
    opened(source, cache, sequence_tokens=64)  # cuts the same tokens otherwise
    assert len(list(cache.iterdir())) == 1
    (tmp_path / "t" / "000.txt").write_bytes(b"changed")
    assert opened(source, cache).fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 2


def test_many_builders_at_once_leave_one_whole_cache(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "t")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: opened(source, tmp_path / "cache"), range(16)))
    assert len({corpus.fingerprint for corpus in found}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "u4")])
def test_tokens_are_stored_in_the_smallest_type(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.array([vocab_size - 1, 1, 2, 1]))
    corpus = opened(f"npy:{tmp_path}/a.npy", tmp_path, vocab_size=vocab_size, document_separator=1)
    assert corpus.tokens.dtype.str[1:] == dtype
    assert corpus.tokens.tolist() == [vocab_size - 1, 1, 2, 1]


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    corpus = opened("python-stdlib", tmp_path, sequence_tokens=512)
    assert corpus.tokens_per_epoch > 1_000_000
    assert corpus.tokens_per_epoch + corpus.validation.num_tokens <= len(corpus.tokens)
    assert corpus.training.lengths.max() == 512
    assert 0 < len(corpus.validation) < len(corpus.training) / 10


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"only one"], "holds one document; at least 2 are needed"),
        ([b"", b""], "holds no token at all"),
        ([b"a", b"b", b"c"], "every training document is a single token"),
        ([b"a", b"long"], "every (training|validation) document is a single token"),
    ],
)
def test_documents_too_few_or_too_short_are_refused(tmp_path: Path, texts: list[bytes], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(write_texts(tmp_path / "t", texts), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".building-*"))
