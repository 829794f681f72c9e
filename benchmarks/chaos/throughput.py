"""What faults cost: tokens of committed rounds, against a part of the same run without faults.

    rate      = tokens committed between the first and the last commit of a phase / the seconds between them
    of all    = rate(chaos) / rate(baseline)                    a newcomer's tokens left out
    surviving = tokens(chaos) / (rate(baseline) / replicas * surviving replica-seconds)

A replica survives while its process is there, is not stopped and is not cut off: from the injection of a fault to
its end (killed: until the new process has joined) its seconds don't count. All else is charged to the run: what the
others wait for the dead, a killed replica's lost work and its wait for the next round, rounds that are redone, and
every second without a coordinator. A newcomer's seconds count from its admission until it leaves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.chaos.history import Record

TAKES_A_REPLICA = ("kill", "pause", "partition", "disk-full")


def throughput(records: Sequence[Record]) -> dict[str, Any]:
    """Both ratios, and what they are made of."""
    replicas = len(records[0]["replicas"])
    begins = {record["phase"]: record["at"] for record in records if record["kind"] == "phase"}
    base = _between(records, begins["baseline"], begins["chaos"])
    hurt = _between(records, begins["chaos"], begins["quiet"])
    per_replica_second = base["tokens"] / base["seconds"] / replicas
    surviving_s = _surviving_s(records, hurt)
    return {
        "of_all": hurt["own_tokens"] / hurt["seconds"] / (base["tokens"] / base["seconds"]),
        "of_surviving": hurt["tokens"] / (per_replica_second * surviving_s),
        "baseline": base,
        "chaos": hurt,
        "replica_seconds": replicas * hurt["seconds"],
        "surviving_replica_seconds": surviving_s,
        "lost_replica_seconds": _lost(records, hurt, per_replica_second),
    }


def _lost(records: Sequence[Record], span: dict[str, float], per_replica_second: float) -> dict[str, float]:
    """What one fault of each kind cost in surviving replica-seconds: the median over the times to the next fault."""
    faults = [record for record in records if record["kind"] == "fault"]
    ends = [*(record["at"] for record in faults[1:]), span["to"]]
    lost = defaultdict[str, list[float]](list)
    for fault, until in zip(faults, ends, strict=True):
        window = {"from": max(fault["at"], span["from"]), "to": min(until, span["to"])}
        if window["to"] > window["from"]:
            expected_s = _surviving_s(records, window)
            lost[fault["fault"]].append(expected_s - _tokens_in(records, window) / per_replica_second)
    return {fault: median(costs) for fault, costs in lost.items()}


def _tokens_in(records: Sequence[Record], window: dict[str, float]) -> float:
    """Tokens committed in a time, those of each round spread evenly over the time since the round before."""
    rounds = [record for record in records if record["kind"] == "round" and record["at"] is not None]
    tokens = 0.0
    for before, after in pairwise(rounds):
        share = _overlap_s(before["at"], after["at"], window) / max(1e-9, after["at"] - before["at"])
        tokens += share * sum(after["tokens"].values())
    return tokens


def _surviving_s(records: Sequence[Record], span: dict[str, float]) -> float:
    everybody_s = len(records[0]["replicas"]) * (span["to"] - span["from"])
    return everybody_s - _down_s(records, span) + _newcomer_s(records, span)


def _between(records: Sequence[Record], since: float, until: float) -> dict[str, float]:
    """Tokens committed after the first commit of a time, up to the last."""
    rounds = [r for r in records if r["kind"] == "round" and r["at"] is not None and since <= r["at"] <= until]
    if len(rounds) < 2:  # the first one only starts the clock
        raise ValueError("too few rounds were committed for a rate")
    first, last = rounds[0]["at"], rounds[-1]["at"]
    return {
        "from": first,
        "to": last,
        "seconds": last - first,
        "rounds": len(rounds) - 1,
        "tokens": sum(sum(record["tokens"].values()) for record in rounds[1:]),
        "own_tokens": sum(
            record["tokens"].get(replica, 0) for record in rounds[1:] for replica in records[0]["replicas"]
        ),
    }


def _down_s(records: Sequence[Record], span: dict[str, float]) -> float:
    """Replica-seconds of a span that faults took, each replica's counted once."""
    faults = [r for r in records if r["kind"] == "fault" and r["fault"] in TAKES_A_REPLICA]
    return sum(_overlap_s(record["at"], record["lifted_at"] or span["to"], span) for record in faults)


def _newcomer_s(records: Sequence[Record], span: dict[str, float]) -> float:
    faults = [record for record in records if record["kind"] == "fault"]
    joined = [record["lifted_at"] for record in faults if record["fault"] == "join"]
    left = [record["at"] for record in faults if record["fault"] == "leave"]
    left += [span["to"]] * (len(joined) - len(left))
    return sum(_overlap_s(came, went, span) for came, went in zip(joined, left, strict=True))


def _overlap_s(since: float, until: float, span: dict[str, float]) -> float:
    return max(0.0, min(until, span["to"]) - max(since, span["from"]))
