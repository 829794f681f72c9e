"""Puts what `make demo` prints into the README: `python -m benchmarks.readme`.

Runs examples/demo.toml in a fresh folder and replaces the block after the `<!-- demo -->` mark by its report, with the
commit and the seconds it took. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"<!-- demo -->\n(?:```text\n.*?```\n)?", re.DOTALL)


def main() -> None:
    """Runs the demo and writes the README."""
    argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__).parse_args()
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD").strip()
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.monotonic()
        override = f"run.directory={folder}/demo"
        subprocess.run(
            [sys.executable, "-m", "launcher", "launch", "examples/demo.toml", override], cwd=ROOT, check=True
        )
        took_s = time.monotonic() - started_s
        report = _said(sys.executable, "-m", "launcher", "report", f"{folder}/demo")
    lines = [line.rstrip() for line in report.splitlines()]
    until = next(number for number, line in enumerate(lines) if line.startswith("Last rounds"))
    shown = "\n".join(lines[:until]).rstrip()
    measured = f"measured at commit {commit}, {took_s:.0f} s on {os.cpu_count()} cores, Python {sys.version.split()[0]}"
    block = f"<!-- demo -->\n```text\n{shown}\n\n({measured})\n```\n"
    README.write_text(BLOCK.sub(lambda _: block, README.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    print(block)


def _said(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
