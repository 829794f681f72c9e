"""What a report of a long run takes: seconds, CPU seconds and memory of `dist-train report --json`.

Writes ledgers of --rows transfers, as 20 members have after some hundred rounds: in each a member gets 32 fragments of
every other, and hands out its own. Then reports them in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from dist_train.config import parse
from dist_train.run_directory import RunDirectory

MEMBERS, FRAGMENTS = 20, 32


def write_ledgers(directory: RunDirectory, rows: int) -> int:
    """Ledgers of about so many rows; their bytes."""
    replicas = [{"id": f"r{n}"} for n in range(MEMBERS)]
    document = {"run": {"name": "long"}, "replica": replicas}
    directory.config.write_text(parse(document).to_toml())
    directory.ledgers.mkdir(parents=True)
    names = [replica["id"] for replica in replicas]
    for member in names:
        peers = [name for name in names if name != member]
        with directory.ledger(member).open("w", encoding="utf-8") as file:
            for n in range(rows // MEMBERS):
                turn, fragment = divmod(n, FRAGMENTS)
                row = {
                    "at_s": 1.7e9 + 0.01 * n, "round": 1 + turn // (2 * len(peers)), "member": member,
                    "peer": peers[turn // 2 % len(peers)], "direction": "received" if turn % 2 else "sent",
                    "kind": "pseudo_gradient", "bytes": 15_000 + n % 999, "seconds": 0.012345,
                    "fragment": f"layer.{fragment}",
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
    return sum(file.stat().st_size for file in directory.ledgers.iterdir())


def measured(directory: RunDirectory) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of a report."""
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "launcher", "report", str(directory.path), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall_s, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": 1024 * after.ru_maxrss}


def main() -> None:
    """Writes, measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the ledgers are kept, and looked for; else they are deleted")
    parser.add_argument("--only-write", action="store_true", help="make the ledgers in --folder, measure another time")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        directory = RunDirectory((arguments.folder or Path(temporary)) / "run")
        if not directory.ledgers.is_dir():
            directory.path.mkdir(parents=True, exist_ok=True)
            write_ledgers(directory, arguments.rows)
        if arguments.only_write:
            return
        ledger_bytes = sum(file.stat().st_size for file in directory.ledgers.iterdir())
        found = {"rows": arguments.rows, "ledger_bytes": ledger_bytes} | measured(directory)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print("{rows} rows: {wall_s:.1f} s, {cpu_s:.1f} s of CPU, {peak_bytes} bytes at most".format(**found))


if __name__ == "__main__":
    main()
