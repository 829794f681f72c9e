"""How much of a peer one caller may take: so many streams at once, and none that only pretends to move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How slowly a stream of payload bytes may move: no pause above `grace_s`, and after it an average."""

    grace_s: float = 30.0
    least_bytes_per_s: float = 8192.0

    def next_by_s(self, started_s: float, now_s: float, num_bytes: int) -> float:
        """When the next bytes must have come, after `num_bytes` that came since `started_s`."""
        return self.grace_s + min(now_s, started_s + num_bytes / self.least_bytes_per_s)


class Turns:
    """At most so many at once for each caller; its further ones wait, nobody else's do."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._callers: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """Waits for a turn of `caller`, and holds it."""
        turns, users = self._callers.get(caller, (asyncio.Semaphore(self._most), 0))
        self._callers[caller] = (turns, users + 1)
        try:
            async with turns:
                yield
        finally:
            turns, users = self._callers.pop(caller)
            if users > 1:
                self._callers[caller] = (turns, users - 1)
