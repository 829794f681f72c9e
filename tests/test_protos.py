"""The generated code is what the .proto files say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_generated_files_are_those_of_the_protos(tmp_path: Path) -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where pip puts protoc's plugins
    command = [sys.executable, "-m", "protos.generate", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": tools}, check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "protos").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "protos").glob("*_pb2*.py*")}
    assert sorted(generated) == sorted(committed)
    differing = [name for name, text in generated.items() if text != committed[name]]
    assert not differing, "run python -m protos.generate"
