"""Nothing in this program turns bytes from elsewhere into code: no pickle, no eval, weights only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("protos", "comms", "compression", "dist_train", "launcher")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
CODE_FROM_BYTES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def offences(tree: ast.Module) -> Iterator[str]:
    """What in a file could run what it reads."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"import {n.name}" for n in names if n.name.split(".")[0] in CODE_FROM_BYTES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in CODE_FROM_BYTES:
                yield f"from {module}"
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                yield f"{name}()"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
                if "weights_only=True" not in [ast.unparse(keyword) for keyword in keywords]:
                    yield "torch.load() of more than weights"
            case ast.keyword(arg="allow_pickle" | "trust_remote_code" as name, value=value):
                if ast.unparse(value) != "False":
                    yield f"{name}={ast.unparse(value)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_runs_what_it_reads(file: Path) -> None:
    assert list(offences(ast.parse(file.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from dill import loads", "eval(x)", "torch.load(f)", "np.load(f, allow_pickle=True)"],
)
def test_an_offence_would_be_found(line: str) -> None:
    assert list(offences(ast.parse(line)))
