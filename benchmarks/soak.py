"""Whether memory stays flat: rounds for half an hour, the memory of the coordinator and of a replica sampled.

`python -m benchmarks.soak --minutes 30 --json`. The slope is a least-squares line through the samples after a warm-up
(the first third), in KiB an hour and in bytes a round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.history import History, Record
from benchmarks.chaos.members import COORDINATOR, Members
from benchmarks.chaos.tiny import compile_codec, tiny_run, write_corpus

SAMPLED_EVERY_S = 5.0
WARM_UP_SHARE = 1 / 3
START_PATIENCE_S = 120.0


def soak(replicas: int, minutes: float, step_s: float, folder: Path) -> dict[str, Any]:
    """Runs so many replicas for so long; what the coordinator's and the first replica's memory did."""
    config = tiny_run(folder / "run", write_corpus(folder / "corpus"), replicas=replicas, most_replicas=0)
    compile_codec(config)
    history = History(folder / "history.jsonl")
    watched = (COORDINATOR, config.replica[0].id)
    samples: list[list[float]] = []
    with Members(config, history, step_s, fork=False) as members:
        members.start_coordinator()
        for replica in config.replica:
            members.start_replica(replica.id)
        if history.wait(_is_commit, START_PATIENCE_S) is None:
            raise RuntimeError(f"no round was committed in {START_PATIENCE_S:g} s; see {folder}/history.jsonl")
        started_s = time.monotonic()
        while (elapsed_s := time.monotonic() - started_s) < 60 * minutes:
            samples.append([elapsed_s, *map(members.resident_bytes, watched)])
            if any(members.processes[member].exitcode is not None for member in members.processes):
                raise RuntimeError(f"a member has ended; see {folder}/history.jsonl")
            time.sleep(SAMPLED_EVERY_S)
        rounds = len({record["message"] for record in history.records if _is_commit(record)})
    history.close()
    settled = np.array([sample for sample in samples if sample[0] >= 60 * minutes * WARM_UP_SHARE])
    rounds_per_s = rounds / samples[-1][0]
    return {
        "minutes": minutes,
        "rounds": rounds,
        "replicas": replicas,
        "memory": {
            member: _slope(settled[:, 0], settled[:, column], rounds_per_s) | {"first_bytes": samples[0][column]}
            for column, member in enumerate(watched, start=1)
        },
        "samples": [
            dict(zip(("at_s", *watched), sample, strict=True)) for sample in samples[:: max(1, len(samples) // 30)]
        ],
    }


def _slope(at_s: np.ndarray, resident_bytes: np.ndarray, rounds_per_s: float) -> dict[str, float]:
    bytes_per_s, _ = np.polyfit(at_s, resident_bytes, 1)
    return {
        "settled_bytes": float(resident_bytes[0]),
        "last_bytes": float(resident_bytes[-1]),
        "kib_per_hour": float(bytes_per_s * 3600 / 1024),
        "bytes_per_round": float(bytes_per_s / rounds_per_s),
    }


def _is_commit(record: Record) -> bool:
    return record["kind"] == "log" and record["member"] == COORDINATOR and ": committed with" in record["message"]


def main() -> None:
    """Soaks and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--step-s", type=float, default=0.05, help="how long an inner step takes at least")
    parser.add_argument("--folder", type=Path, help="where the run is kept; a temporary folder when left out")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(arguments.replicas, arguments.minutes, arguments.step_s, arguments.folder or Path(temporary))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['rounds']} rounds in {found['minutes']:g} minutes")
    for member, memory in found["memory"].items():
        print(
            f"{member}: {memory['settled_bytes'] / 2**20:.1f} to {memory['last_bytes'] / 2**20:.1f} MiB of its own, "
            f"{memory['kib_per_hour']:+.0f} KiB an hour, {memory['bytes_per_round']:+.0f} bytes a round"
        )


if __name__ == "__main__":
    main()
