"""Every kind of source gives its documents in order, and says where it cannot."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.config import ConfigError, DataConfig
from dist_train.data import sources
from dist_train.data.sources import documents, source_files

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = ["first", "", "dritter: ä\r\n", "last"]


def found(source: str, vocab_size: int = 256, **data: object) -> list[str | list[int]]:
    config = DataConfig.model_validate({"source": source, **data})
    return [d if isinstance(d, str) else d.tolist() for d in documents(config, vocab_size)]


def write_parquet(path: Path, columns: dict[str, pa.Array], row_group: int = 100) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=row_group)


def test_one_document_a_text_file_in_sorted_order(tmp_path: Path) -> None:
    for name, text in zip(["d", "a", "c", "b"], TEXTS, strict=True):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    (tmp_path / "other.md").write_text("no")
    assert found(f"text:{tmp_path}/*.txt") == [TEXTS[1], TEXTS[3], TEXTS[2], TEXTS[0]]


def test_a_pattern_with_two_stars_reaches_into_folders(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "deep.txt").write_text("deep")
    assert found(f"text:{tmp_path}/**/*.txt") == ["deep"]


def test_jsonl_gives_the_field_of_each_line_and_skips_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"body": text, "n": 1}) for text in TEXTS))
    assert found(f"jsonl:{tmp_path}/*.jsonl", text_field="body") == TEXTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_gives_the_column_over_all_row_groups(tmp_path: Path, kind: pa.DataType) -> None:
    write_parquet(tmp_path / "a.parquet", {"id": pa.array([1, 2, 3, 4]), "text": pa.array(TEXTS, kind)}, row_group=2)
    write_parquet(tmp_path / "b.parquet", {"text": pa.array([None, "more"], kind)})
    assert found(f"parquet:{tmp_path}/*.parquet") == [*TEXTS, "", "more"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_a_bin_shard_is_little_endian_tokens(tmp_path: Path, dtype: str) -> None:
    np.array([1, 2, 250, 0], dtype=np.dtype(dtype).newbyteorder("<")).tofile(tmp_path / "a.bin")
    (tmp_path / "empty.bin").touch()
    assert found(f"bin:{tmp_path}/*.bin", token_dtype=dtype) == [[1, 2, 250, 0]]


@pytest.mark.parametrize("dtype", [">i4", "<u2", "int64"])
def test_an_npy_shard_may_be_of_any_integer_type(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.array([5, 6, 7], dtype=dtype))
    assert found(f"npy:{tmp_path}/a.npy") == [[5, 6, 7]]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 7))
def test_the_documents_of_a_shard_are_its_tokens_each_ended_by_the_separator(tokens: list[int], scan: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SCAN_TOKENS", scan)  # a document may lie over several windows
        config = DataConfig(source="npy:x", document_separator=0)
        shard = np.array(tokens, dtype=np.int64)
        cut = [d.tolist() for d in sources._documents_of_shard(shard, Path("x"), config, 4)]
    assert [token for document in cut for token in document] == tokens
    assert all(d.index(0) == len(d) - 1 for d in cut[:-1])
    assert 0 not in cut[-1]


def test_the_standard_library_without_its_tests_and_without_what_is_installed_or_of_one_machine() -> None:
    files = source_files(DataConfig())
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root).as_posix() for path in files]
    assert {"os.py", "json/decoder.py", "asyncio/base_events.py"} <= set(names)
    assert not [n for n in names if "site-packages" in n or "/test" in n or n.startswith(("test/", "_sysconfigdata"))]
    assert files == sorted(files)
    texts = found("python-stdlib")
    assert (root / "os.py").read_bytes().decode() in texts
    assert sum(map(len, texts)) > 1_000_000


def write_npy(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, array)

    return write


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("text", b"ab\xff", "x: byte 2 is not UTF-8"),
        ("jsonl", b'{"text": "a"}\n\n{"text": ', "x:3: not JSON: "),
        ("jsonl", b'{"text": "\xff"}', "x:1: not JSON: "),
        ("jsonl", b'["text"]', "x:1: a list; each line must be one JSON object"),
        ("jsonl", b'{"text": "a"}\n{"body": "b", "id": 1}', 'x:2: no field "text"; .*: body, id'),
        ("jsonl", b'{"text": 7}', 'x:1: field "text" holds a int'),
        ("jsonl", b'{"text": "\\ud800"}', "x:1: .* surrogate"),
        ("parquet", b"no parquet", "x: not a Parquet file"),
        ("parquet", {"body": pa.array(["a"]), "id": pa.array([1])}, 'x: no column "text"; .*: body, id'),
        ("parquet", {"text": pa.array([1])}, 'x: column "text" holds int64, not text'),
        ("bin", b"abc", "x: 3 bytes are no whole number of uint16 tokens"),
        (
            "bin",
            b"\x01\x00\x00\x01",
            r"x: token 256 at position 1 is outside of the vocabulary \(model.vocab_size = 256",
        ),
        ("npy", b"no array", "x: not a .npy array"),
        ("npy", write_npy(np.array([1, -1])), "x: token -1 at position 1"),
        ("npy", write_npy(np.array([[1]])), r"x: int64 of shape \(1, 1\); a shard is one array"),
        ("npy", write_npy(np.array([1.0])), "x: float64 of shape"),
        ("npy", write_npy(np.array([{}])), "x: not a .npy array"),
        ("npy", lambda path: path.open("wb").close(), "x: not a .npy array"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(
    tmp_path: Path, kind: str, content: bytes | dict[str, pa.Array] | Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "x"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        write_parquet(path, content)
    else:
        content(path)
    with pytest.raises(ConfigError, match=message) as error:
        found(f"{kind}:{path}")
    assert "\n" not in str(error.value)


def test_a_file_broken_in_the_middle_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x", {"text": pa.array(["some words " * 100])})
    content = bytearray((tmp_path / "x").read_bytes())
    content[4:100] = bytes(96)  # the first page, behind the magic number
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x: cannot be read: .*; mend the file or leave it out"):
        found(f"parquet:{tmp_path}/x")


@pytest.mark.parametrize("source", ["", "text", "text:", "csv:*.csv", "python-stdlib:x"])
def test_an_unknown_source_is_answered_with_the_known_ones(source: str) -> None:
    with pytest.raises(ConfigError, match=r"is no source; use python-stdlib, text:GLOB, jsonl:GLOB"):
        found(source)


def test_a_pattern_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing-\*\" matches no file .* check the pattern"):
        found(f"text:{tmp_path}/nothing-*")


def test_a_separator_outside_of_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1]))
    with pytest.raises(ConfigError, match="document_separator = 50256 is no token of a vocabulary of 256"):
        found(f"npy:{tmp_path}/a.npy", document_separator=50256)
