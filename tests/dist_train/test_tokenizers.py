"""Texts become the tokens that they should, and vocabularies fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dist_train.config import ConfigError, DataConfig
from dist_train.data.tokenizers import ByteTokenizer, load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = {"<unk>": 0, "a": 1, "b": 2, "<end>": 9}  # with holes


def save_tokenizer(directory: Path, special: dict[str, str] | None = None) -> DataConfig:
    unknown = {"unk_token": "<unk>"}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, **unknown))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **unknown, **(special or {})).save_pretrained(str(directory))
    return DataConfig(tokenizer=str(directory))


@given(st.lists(st.text()))
def test_bytes_are_the_text_in_utf8(texts: list[str]) -> None:
    assert [tokens.tobytes().decode() for tokens in ByteTokenizer().encode(texts)] == texts


def test_a_directory_s_tokenizer_ends_each_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, {"eos_token": "<end>"}), 10)
    assert [tokens.tolist() for tokens in tokenizer.encode(["a b a", "zzz"])] == [[1, 2, 1, 9], [0, 9]]
    assert tokenizer.encode([]) == []


def test_a_tokenizer_without_an_end_token_adds_nothing(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path), 10)
    assert [tokens.tolist() for tokens in tokenizer.encode(["a b a"])] == [[1, 2, 1]]


def test_the_vocabulary_reaches_to_its_largest_token(tmp_path: Path) -> None:
    assert load_tokenizer(save_tokenizer(tmp_path), 10).vocab_size == 10


def test_a_model_with_a_smaller_vocabulary_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size = 9 is less than the 10 tokens"):
        load_tokenizer(save_tokenizer(tmp_path), 9)
    with pytest.raises(ConfigError, match=r'vocab_size = 255 is less than the 256 tokens of data.tokenizer = "bytes"'):
        load_tokenizer(DataConfig(), 255)


def test_a_name_that_is_no_directory_is_refused_and_never_looked_up_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r'data.tokenizer = "gpt2" is no directory; use "bytes" or'):
        load_tokenizer(DataConfig(tokenizer="gpt2"), 50257)


def test_a_directory_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded: ") as error:
        load_tokenizer(DataConfig(tokenizer=str(tmp_path)), 256)
    assert "\n" not in str(error.value)
