"""How busy the machine was: by hand, and unknown where nothing tells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.chaos.machine import busy_cores, busy_s


def test_idle_and_waiting_are_not_busy(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 300 5000 600 7 8 9 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")
    assert busy_s(stat) == pytest.approx((100 + 20 + 300 + 7 + 8 + 9) / os.sysconf("SC_CLK_TCK"))


def test_what_nobody_tells_is_unknown_and_not_idle(tmp_path: Path) -> None:
    assert busy_s(tmp_path / "nothing") is None
    phases = [
        {"kind": "phase", "phase": "baseline", "at": 0.0, "busy_s": 10.0},
        {"kind": "phase", "phase": "chaos", "at": 10.0, "busy_s": 25.0},
        {"kind": "phase", "phase": "quiet", "at": 20.0, "busy_s": None},
        {"kind": "phase", "phase": "end", "at": 30.0},
    ]
    assert busy_cores(phases) == {"baseline": 1.5, "chaos": None, "quiet": None}
