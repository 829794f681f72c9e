"""Keys that messages name exist: an advice that the config then refuses is worse than none."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_train.config.reference import sections

ROOT = Path(__file__).parents[2]
KEYS = {section.name.strip("[]"): {key.name for key in section.keys} for section in sections()}
NAMED = re.compile(
    rf"(?<![\w./-])({'|'.join(map(re.escape, sorted(KEYS, key=len, reverse=True)))})\.([a-z_]+)\b(?![./(])"
)
FILES = {"toml", "json", "jsonl", "py", "safetensors", "html", "csv", "parquet", "md", "txt", "key", "token", "lock"}
PARAMETERS = {"embed_tokens", "norm"}
"""What a file or a tensor is called after its dot: model.safetensors is no key, nor is model.norm."""
SOURCES = sorted(
    path for room in ("comms", "compression", "dist_train", "launcher") for path in (ROOT / room).rglob("*.py")
)


def _said(path: Path) -> Iterator[str]:
    """Texts of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.value


def _unknown(text: str) -> list[str]:
    named = [match.groups() for match in NAMED.finditer(text)]
    names = [(f"{section}.{key}", key in KEYS[section] | FILES | PARAMETERS) for section, key in named]
    return [name for name, is_known in names if not is_known and name not in KEYS]


def test_keys_that_do_not_exist_are_found() -> None:
    assert not _unknown("raise exchange.fetch_deadline_s, or look into model.safetensors")
    assert _unknown("set exchange.overlap = true") == ["exchange.overlap"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_key_that_a_message_names_exists(path: Path) -> None:
    assert [unknown for text in _said(path) for unknown in _unknown(text)] == []
