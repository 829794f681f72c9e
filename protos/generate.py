"""Generates the Python code of the `.proto` files beside this one: `python -m protos.generate [OUTPUT_FOLDER]`."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTOS = sorted(path.relative_to(ROOT).as_posix() for path in Path(__file__).parent.glob("*.proto"))


def generate(output: Path) -> None:
    """Writes messages, services and their type stubs under `output`/protos; RuntimeError when protoc fails."""
    from grpc_tools import protoc  # noqa: PLC0415 - only developers have it

    includes = [f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={output}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    if code := protoc.main(["protoc", *includes, *outputs, *PROTOS]):
        raise RuntimeError(f"protoc ended with {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
