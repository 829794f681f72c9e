"""The demo's recipe under every method and rule: loss against bytes. `python -m benchmarks.methods [--json] [ARM …]`.

Each arm is examples/dense.toml with a few keys changed, run by `dist-train launch` in a folder of its own; all arms
train on the same tokens in the same order. Losses and bytes are deterministic for a seed; seconds are the machine's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ARMS: dict[str, list[str]] = {
    "sparseloco": [],
    "sparseloco mean": ["sparseloco.aggregate=mean"],
    "sparseloco mean lr 2": ["sparseloco.aggregate=mean", "outer.lr=2.0"],
    "sparseloco weighted": ["sparseloco.aggregate=weighted"],
    "sparseloco lr 0.7": ["outer.lr=0.7"],
    "sparseloco 1 bit": ["sparseloco.value_bits=1"],
    "sparseloco fp32 values": ["sparseloco.value_bits=32"],
    "sparseloco statistical": ["sparseloco.quantizer=statistical"],
    "sparseloco k 128": ["sparseloco.k=128"],
    "sparseloco no guard": ["outer.guard=off"],
    "diloco": ["outer.method=diloco"],
    "diloco int8": ["outer.method=diloco", "outer.dense_values=int8"],
    "ddp": ["outer.method=ddp"],
}


def main() -> None:
    """Runs the arms named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := [arm for arm in options.arms if arm not in ARMS]:
        parser.error(f"no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
    results = []
    for arm in options.arms or ARMS:
        results.append(measure(arm, options.seed, options.rounds))
        if not options.json:
            print(line(results[-1]), flush=True)
    if options.json:
        print(json.dumps(results, indent=1))


def measure(arm: str, seed: int, rounds: int) -> dict[str, Any]:
    """One arm, run to its end."""
    with tempfile.TemporaryDirectory() as folder:
        changes = [*ARMS[arm], f"run.seed={seed}", f"outer.rounds={rounds}", f"run.directory={folder}/run"]
        launch = [sys.executable, "-m", "launcher", "launch", "examples/dense.toml", *changes]
        subprocess.run(launch, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "launcher", "report", f"{folder}/run", "--json"]
        report = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    sent = {part["kind"]: part["sent_bytes"] for part in report["traffic"]}
    return {
        "arm": arm,
        "seed": seed,
        "rounds": rounds,
        "tokens": report["tokens"],
        "train_loss": report["loss"]["train_last"],
        "validation_loss": report["loss"]["validation_last"],
        "sent_bytes": sent["pseudo_gradient"],
        "bits_per_parameter": report["pseudo_gradient"]["bits_per_parameter"],
    }


def line(result: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{result['arm']:24}  seed {result['seed']}  validation {result['validation_loss']:.3f}  "
        f"train {result['train_loss']:.3f}  {result['sent_bytes'] / 1e6:9.2f} MB sent"
    )


if __name__ == "__main__":
    main()
