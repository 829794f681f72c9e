"""A run under faults: `python -m benchmarks.chaos --replicas 8 --minutes 5 --seed 1 --json`.

One run: a phase without faults, then a fault every ten seconds, then quiet until everybody contributes again. The
history is kept (--folder), judged from itself alone, and can be judged again: `--check HISTORY`. Exit code 1 when the
judge finds something.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.checks import recovery_times_s, violations
from benchmarks.chaos.faults import FAULTS, NEWCOMER, Attack, schedule
from benchmarks.chaos.forwarders import Forwarders
from benchmarks.chaos.history import VERSION, History, Record, add_outcome, read
from benchmarks.chaos.machine import busy_cores, busy_s
from benchmarks.chaos.members import COORDINATOR, Members
from benchmarks.chaos.throughput import throughput
from benchmarks.chaos.tiny import STEPS, compile_codec, tiny_run, write_corpus

if TYPE_CHECKING:
    from launcher.star import Star

START_PATIENCE_S = 180.0
QUIET_S, QUIET_PATIENCE_S = 3.0, 60.0
END_PATIENCE_S = 30.0
LEAST_ROUNDS = 3
"""Without faults, however slow the machine is: a rate needs as many."""


def hurt(arguments: argparse.Namespace, folder: Path) -> Path:
    """Runs, hurts and ends a run; the file of its history."""
    replicas = [f"r{number}" for number in range(arguments.replicas)]
    with ExitStack() as stack:
        everybody = [COORDINATOR, *replicas, NEWCOMER]
        links = folder / "links.json"
        cables = Forwarders(links, everybody) if arguments.loopback else stack.enter_context(_star(everybody))
        config = tiny_run(
            folder / "run", write_corpus(folder / "corpus"), replicas=len(replicas), most_replicas=len(replicas) + 1,
            security="loopback" if arguments.loopback else "insecure",
        )  # fmt: skip
        compile_codec(config)
        history = History(folder / "history.jsonl")
        history.add(
            "header", version=VERSION, seed=arguments.seed, replicas=replicas, every_s=arguments.every,
            commit_bound_s=arguments.commit_bound_s, return_bound_s=arguments.return_bound_s,
        )  # fmt: skip
        with Members(config, history, arguments.round_s / STEPS, cables) as members:
            _begin(members, replicas)
            _mark(history, "baseline")
            for _ in range(LEAST_ROUNDS):
                _sees_commit_of(members, set(), START_PATIENCE_S)
            time.sleep(arguments.baseline_s)
            _mark(history, "chaos")
            _attack(members, replicas, arguments)
            _mark(history, "quiet")
            _calm_down(members)
            _mark(history, "end")
            _end(members)
        add_outcome(history, members.directory)
        history.close()
    return folder / "history.jsonl"


def _star(members: list[str]) -> Star:
    """Machines for the members; OSError or NetlinkError where the kernel has none: --loopback does without."""
    from launcher.star import Star  # noqa: PLC0415 - pyroute2, which is there on Linux only

    return Star(members)


def _mark(history: History, phase: str) -> None:
    """Begins a part of the run; notes how long the machine's cores have been busy, whoever it was for."""
    history.add("phase", phase=phase, busy_s=busy_s())


def _begin(members: Members, replicas: list[str]) -> None:
    _mark(members.history, "start")
    members.start_coordinator()
    for replica in replicas:
        members.start_replica(replica)
    if not _sees_commit_of(members, set(replicas), START_PATIENCE_S):
        raise RuntimeError(f"the run did not begin within {START_PATIENCE_S:g} s")


def _attack(members: Members, replicas: list[str], arguments: argparse.Namespace) -> None:
    """One fault after the other, each begun at its time."""
    count = int(60 * arguments.minutes / arguments.every)
    planned = schedule(arguments.seed, replicas, count)
    began_s = time.monotonic()
    for number, (fault, victim, lasts_s) in enumerate(planned):
        time.sleep(max(0.0, began_s + number * arguments.every - time.monotonic()))
        if not arguments.json:
            print(f"{time.monotonic() - began_s:6.1f} s  {fault} {victim}", flush=True)
        FAULTS[fault](Attack(members, fault, victim, lasts_s))
    time.sleep(max(0.0, began_s + count * arguments.every - time.monotonic()))


def _calm_down(members: Members) -> None:
    """Waits until everybody who is there contributes again."""
    time.sleep(QUIET_S)
    there = {name for name, process in members.processes.items() if process.exitcode is None} - {COORDINATOR}
    _sees_commit_of(members, there, QUIET_PATIENCE_S)
    time.sleep(QUIET_S)  # and has applied it, and said so


def _end(members: Members) -> None:
    """Ends the replicas, who say goodbye, and then the coordinator."""
    for member in sorted(members.processes, key=lambda name: name == COORDINATOR):
        if members.processes[member].exitcode is None:
            members.signal(member, signal.SIGTERM)
            members.exit_code(member, END_PATIENCE_S)


def _sees_commit_of(members: Members, replicas: set[str], patience_s: float) -> bool:
    def matches(record: Record) -> bool:
        if record["kind"] != "log" or record["member"] != COORDINATOR:
            return False
        _, is_commit, contributors = record["message"].partition(": committed with ")
        return bool(is_commit) and replicas <= set(contributors.split(", "))

    return members.history.wait(matches, patience_s, len(members.history.records)) is not None


def judged(records: list[Record]) -> dict[str, Any]:
    """What a history comes to."""
    faults = [record["fault"] for record in records if record["kind"] == "fault"]
    rounds = [record for record in records if record["kind"] == "round"]
    return {
        "seed": records[0]["seed"],
        "replicas": len(records[0]["replicas"]),
        "rounds": len(rounds),
        "faults": {fault: faults.count(fault) for fault in FAULTS if fault in faults},
        "violations": violations(records),
        "busy_cores": busy_cores(records),
        "throughput": throughput(records),
        "recovery_s": {
            fault: {"median": statistics.median(taken), "worst": max(taken)}
            for fault, taken in recovery_times_s(records).items()
        },
    }


def main() -> int:
    """Runs or judges, and prints; 1 when there are violations."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0, help="of the phase with faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between faults")
    parser.add_argument("--baseline-s", type=float, default=60.0, help="seconds of the phase without")
    parser.add_argument("--round-s", type=float, default=1.5, help="how long the inner steps of a round take at least")
    parser.add_argument("--commit-bound-s", type=float, default=15.0, help="from a fault to the next commit")
    parser.add_argument("--return-bound-s", type=float, default=30.0, help="from its end to the victim's contribution")
    parser.add_argument("--loopback", action="store_true", help="forwarders, not namespaces, which need root")
    parser.add_argument("--folder", type=Path, help="where run and history are kept; a temporary folder when left out")
    parser.add_argument("--check", type=Path, metavar="HISTORY", help="judge this history, and run nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        file = arguments.check or hurt(arguments, arguments.folder or Path(temporary))
        found = judged(read(file))
    if not arguments.check:
        found["load"] = {"before": load_before, "after": os.getloadavg()[0], "cores": os.cpu_count()}
    print(json.dumps(found, indent=2) if arguments.json else _text(found))
    return 1 if found["violations"] else 0


def _text(found: dict[str, Any]) -> str:
    rates = found["throughput"]
    lines = [
        f"{found['rounds']} rounds, {found['replicas']} replicas, faults: {found['faults']}",
        f"throughput: {rates['of_all']:.1%} of all, {rates['of_surviving']:.1%} of the surviving replica-seconds",
    ]
    for fault, took in found["recovery_s"].items():
        lost_s = rates["lost_replica_seconds"].get(fault, 0.0)
        lines.append(
            f"{fault}: next commit after {took['median']:.1f} s, worst {took['worst']:.1f} s; "
            f"cost {lost_s:.1f} replica-seconds"
        )
    lines += [f"VIOLATION {what}" for what in found["violations"]]
    lines.append(f"{len(found['violations'])} violations")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
