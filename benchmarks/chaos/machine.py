"""How busy the machine was under the run, and under whatever else it did: both phases have to have it alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.chaos.history import Record


def busy_s() -> float:
    """Core-seconds since the machine started that were not idle; 0 where there is no /proc/stat."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, *interrupts = map(int, line.split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def busy_cores(records: Sequence[Record]) -> dict[str, float]:
    """Cores that were busy during each phase, on average."""
    phases = [record for record in records if record["kind"] == "phase" and "busy_s" in record]
    return {
        before["phase"]: (after["busy_s"] - before["busy_s"]) / max(1e-9, after["at"] - before["at"])
        for before, after in pairwise(phases)
    }
