"""The time by which a replica measures its round: a wall's, or a simulated one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time, and hears what it was spent on."""

    def now_s(self) -> float:
        """Seconds since some moment."""
        ...

    def did(self, phase: str) -> None:
        """A phase of a round is over: where time is simulated, it passes now."""
        ...


class WallClock:
    """Time that passes by itself."""

    def now_s(self) -> float:
        """Seconds that really passed."""
        return time.monotonic()

    def did(self, phase: str) -> None:
        """Nothing."""


WALL_CLOCK = WallClock()
