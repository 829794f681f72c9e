"""How busy the machine was under the run, and under whatever else it did: both phases have to have it alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.chaos.history import Record

STAT = Path("/proc/stat")


def busy_s(stat: Path = STAT) -> float | None:
    """Core-seconds since the machine started that were not idle; None where there is no such file to tell."""
    try:
        line = stat.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(int, line.split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def busy_cores(records: Sequence[Record]) -> dict[str, float | None]:
    """Cores that were busy during each phase, on average; None where that is not known."""
    phases = [record for record in records if record["kind"] == "phase"]
    return {before["phase"]: _busy_between(before, after) for before, after in pairwise(phases)}


def _busy_between(before: Record, after: Record) -> float | None:
    if (begun_s := before.get("busy_s")) is None or (ended_s := after.get("busy_s")) is None:
        return None
    return float((ended_s - begun_s) / max(1e-9, after["at"] - before["at"]))
