"""Simulated seconds against real ones: `python -m benchmarks.virtual [--json] [--rounds N] [--way kernel]`.

For each rate and method the demo, shortened and with dense replicas only, is run twice: by real processes on links
that somebody enforces, and by virtual replicas that take, phase by phase and round by round, the seconds of work that
the real ones took (`--like`). So what is compared is everything else: the exchange, who waits for whom, and what the
real machine adds. Reported are
the seconds from the opening of each round to its commit, added up; the first round, in which connections are made, is
also left out in `ratio_later`. `exchange_ratio` is of the part that is not the slowest replica's work.

`diloco` sends fp32 values, 3.3 MB a replica, so that its rounds are mostly transfers; `sparseloco`'s are mostly work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train.config import ReplicaConfig, load
from dist_train.report.metrics import read_rounds
from dist_train.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.report.metrics import RoundRow

ROOT = Path(__file__).parent.parent
RATES_MBIT = (5, 20, 50)
METHODS = ("sparseloco", "diloco")
WORK = ("compute", "encode", "decode", "apply", "validate")


def main() -> None:
    """Runs all, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--way", default="auto", choices=("auto", "kernel", "token-bucket"))
    options = parser.parse_args()
    results = []
    for method in METHODS:
        for rate in RATES_MBIT:
            results.append(compare(method, rate, options.rounds, options.way))
            if not options.json:
                print(json.dumps(results[-1]), flush=True)
    if options.json:
        print(json.dumps(results, indent=1))


def compare(method: str, rate_mbit: int, rounds: int, way: str) -> dict[str, Any]:
    """One run both ways."""
    with tempfile.TemporaryDirectory() as folder:
        common = [
            str(_dense_demo(Path(folder))), f"outer.method={method}", f"outer.rounds={rounds}", "inner.steps=5",
            "data.validation_tokens=2048", "--link", f"{rate_mbit}mbit,20ms",
        ]  # fmt: skip
        real, virtual = RunDirectory(Path(folder) / "real"), RunDirectory(Path(folder) / "virtual")
        _simulate([*common, f"run.directory={real.path}", f"simulate.enforce={way}"])
        _simulate([*common, f"run.directory={virtual.path}", "--virtual", "--like", str(real.path)])
        rows, simulated = read_rounds(real.metrics), read_rounds(virtual.metrics)
        links = json.loads(real.simulation.read_text(encoding="utf-8"))
    return {
        "method": method, "rate_mbit": rate_mbit, "enforced_by": links["rates_by"], "rounds": len(rows),
        "real_s": round(_seconds(rows), 3), "virtual_s": round(_seconds(simulated), 3),
        "ratio": round(_seconds(simulated) / _seconds(rows), 4),
        "ratio_later": round(_seconds(simulated[1:]) / _seconds(rows[1:]), 4),
        "exchange_ratio": round(_exchange_s(simulated[1:]) / _exchange_s(rows[1:]), 4),
        "same_digests": [row.theta_digest for row in rows] == [row.theta_digest for row in simulated],
        "load": os.getloadavg()[0],
    }  # fmt: skip


def _dense_demo(folder: Path) -> Path:
    """The demo's config; its replicas by one machine each, because a virtual one is no pipeline."""
    config = load(ROOT / "examples" / "demo.toml")
    dense = [ReplicaConfig(id=replica.id) for replica in config.replica]
    file = folder / "demo.toml"
    file.write_text(config.model_copy(update={"replica": tuple(dense)}).to_toml(), encoding="utf-8")
    return file


def _simulate(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "launcher", "simulate", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def _seconds(rows: Sequence[RoundRow]) -> float:
    return sum(row.duration_s or 0.0 for row in rows)


def _exchange_s(rows: Sequence[RoundRow]) -> float:
    """What a round took beside the work of its slowest replica."""
    slowest = [max(sum(phases.get(name, 0.0) for name in WORK) for phases in row.phase_s.values()) for row in rows]
    return _seconds(rows) - sum(slowest)


if __name__ == "__main__":
    main()
