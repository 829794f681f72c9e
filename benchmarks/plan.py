"""The plan's seconds beside a run's: the demo on limited links, each rate predicted from one run without limits.

    calibration   `simulate` without limits: compute, encode, fetch with decode, and apply of a round, each of the
                  replica that took longest; the medians over the rounds
    prediction    `planning.predict` with these figures as [[device]], and the rate as everybody's line
    measurement   `simulate --link RATE,LATENCY`: seconds from opening to commit, and of each phase, the medians

The first round is left out: it warms up. Three replicas share this machine, so compute is calibrated as it is shared.
A rate that the kernel could not enforce is an error of `simulate`, not a figure here. Runs are kept in --folder and not
made again, so that one rate after another can be measured, each for a few minutes, against the same calibration.

And the placement's own speed: 64 machines, 80 layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_train.config import load, parse
from dist_train.planning.architecture import architecture_of
from dist_train.planning.assumptions import Assumptions
from dist_train.planning.devices import Device, Link, Network
from dist_train.planning.grouping import place
from dist_train.planning.predict import predict
from dist_train.planning.stages import Workload
from dist_train.report.metrics import RoundRow, read_rounds
from dist_train.run_directory import RunDirectory

if TYPE_CHECKING:
    from dist_train.config import Config

WARMING_ROUNDS = 1
SIMULATED_DEVICE = "demo-machine"


def simulated(run_file: Path, directory: Path, rounds: int, link: str) -> dict[str, float]:
    """Median seconds of a round by phase, and `round`, of one simulated run: made now, unless it is there already."""
    if len(read_rounds(RunDirectory(directory).metrics)) < rounds:
        _simulate(run_file, directory, rounds, link)
    rows = read_rounds(RunDirectory(directory).metrics)[WARMING_ROUNDS:]
    phases = sorted({phase for row in rows for by_phase in row.phase_s.values() for phase in by_phase})
    found = {phase: statistics.median(_slowest_s(row, phase) for row in rows) for phase in phases}
    return found | {"round": statistics.median(row.duration_s or 0.0 for row in rows)}


def _slowest_s(row: RoundRow, phase: str) -> float:
    """Seconds of a phase of a round, of the replica that took longest: the others wait for it."""
    return max((by_phase.get(phase, 0.0) for by_phase in row.phase_s.values()), default=0.0)


def _simulate(run_file: Path, directory: Path, rounds: int, link: str) -> None:
    overrides = [f"run.directory={directory}", f"outer.rounds={rounds}", f"outer.validate_every={rounds}"]
    command = [sys.executable, "-m", "launcher", "simulate", str(run_file), *overrides, "--link", link, "--json"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def calibrated(config: Config, seconds: dict[str, float]) -> Config:
    """`config` with the figures of an unlimited run as its [[device]]."""
    architecture = architecture_of(config.model)
    flops = architecture.flops_per_token(config.data.sequence_tokens) * config.inner.batch_tokens
    parameters, replicas = architecture.parameters, len(config.replica)
    device = {
        "name": SIMULATED_DEVICE,
        "tflops": flops * config.steps_per_round / seconds["compute"] / 1e12,
        "encode_parameters_per_s": parameters / max(seconds["encode"], 1e-9),
        "decode_parameters_per_s": replicas * parameters / max(seconds["fetch"] + seconds["decode"], 1e-9),
        "apply_parameters_per_s": parameters / max(seconds["apply"], 1e-9),
    }
    return parse(
        config.model_dump(mode="json", exclude_none=True) | {"device": [device], "plan": {"device": SIMULATED_DEVICE}}
    )


def compared(config: Config, run_file: Path, folder: Path, rounds: int, links: list[str]) -> list[dict[str, Any]]:
    """A row for each link: predicted and measured seconds, and their ratio."""
    free = simulated(run_file, folder / "unlimited", rounds, "unlimited")
    config = calibrated(config, free)
    rows = []
    for link in links:
        rate, _, latency = link.partition(",")
        plan = predict(config, Assumptions(line=rate, latency=latency or None))
        measured = simulated(run_file, folder / rate.replace("/", "-"), rounds, link)
        predicted_s = plan.round_s or 0.0
        rows.append(
            {
                "link": link,
                "predicted_round_s": predicted_s,
                "measured_round_s": measured["round"],
                "predicted_over_measured": predicted_s / measured["round"],
                "predicted_fetch_s": plan.groups[0].phases.fetch_s + plan.groups[0].phases.decode_s,
                "measured_fetch_s": measured["fetch"] + measured["decode"],
                "measured_compute_s": measured["compute"],
                "unlimited_compute_s": free["compute"],
                "unlimited_fetch_s": free["fetch"] + free["decode"],
                "unlimited_round_s": free["round"],
            }
        )
    return rows


def placing(machines: int, layers: int, seed: int) -> dict[str, float]:
    """CPU seconds to place so many machines of random speed, memory and links."""
    rng = np.random.default_rng(seed)
    parameters = 856e6
    work = Workload(
        layers=layers,
        hidden_size=8192,
        micro_batch_tokens=2048,
        micro_batches=16,
        layer_flops=6 * parameters * 2048,
        layer_bytes=16 * parameters,
        embed_bytes=34e9,
        head_bytes=34e9,
        layer_activation_bytes=2048 * 40 * 8192,
    )
    devices = [
        Device(f"d{i}", rng.uniform(2e13, 2e14), float(rng.choice([24e9, 80e9, 180e9, 2e12]))) for i in range(machines)
    ]
    started_s = time.process_time()
    placement = place(work, devices, Network(Link(5e8, 0.02)))
    cpu_s = time.process_time() - started_s
    return {"machines": machines, "layers": layers, "cpu_s": cpu_s, "replicas": len(placement.replicas)}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--run-file", type=Path, default=Path("examples/dense.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-plan"), help="where the runs are kept")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--links", nargs="+", default=["100kbit,20ms", "500kbit,20ms", "5mbit,20ms"])
    parser.add_argument("--only-placing", action="store_true", help="no runs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"placing": placing(64, 80, arguments.seed), "links": []}
    if not arguments.only_placing:
        config = load(arguments.run_file)
        found["links"] = compared(
            config, arguments.run_file, arguments.folder.resolve(), arguments.rounds, arguments.links
        )
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(
        "placing {machines} machines, {layers} layers: {cpu_s:.2f} s of CPU, {replicas} replicas".format(
            **found["placing"]
        )
    )
    for row in found["links"]:
        print("{link}: predicted {predicted_round_s:.2f} s, measured {measured_round_s:.2f} s a round".format(**row))


if __name__ == "__main__":
    main()
