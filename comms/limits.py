"""How much of a peer one caller may take: so many streams and messages, and no stream that only pretends to move."""

from __future__ import annotations

import asyncio
import math
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


class Throttle:
    """Lets `burst` through at once and then `per_s` a second; who brings more is made to wait."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._allowance_s = burst / per_s
        self._each_s = 1 / per_s
        self._due_s = -math.inf

    async def wait(self) -> None:
        """Takes the place of one."""
        now_s = asyncio.get_running_loop().time()
        self._due_s = max(self._due_s, now_s - self._allowance_s) + self._each_s
        if self._due_s > now_s:
            await asyncio.sleep(self._due_s - now_s)


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


class Allowances:
    """Lets each caller do `burst` things at once and then `per_s` a second; who wants more is refused."""

    _MOST_CALLERS = 1024

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, caller: str, now_s: float) -> bool:
        """Takes one of `caller`'s; False when it has none left."""
        left, at_s = self._left.pop(caller, (float(self._burst), now_s))
        left = min(self._burst, left + (now_s - at_s) * self._per_s)
        if len(self._left) >= self._MOST_CALLERS:
            del self._left[next(iter(self._left))]  # whoever has asked least lately
        self._left[caller] = (max(0.0, left - 1) if left >= 1 else left, now_s)
        return left >= 1
