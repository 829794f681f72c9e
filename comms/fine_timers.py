"""An event loop whose timers are as fine as the kernel's.

On Linux asyncio waits in epoll_wait(2), which counts whole milliseconds, and rounds up: 9.1 ms become 10 or 11. An
epoll can be waited for itself, by select(2), which counts microseconds.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import sys

_MOST_DESCRIPTOR = 1023
"""What select(2) can wait for."""


def fine_loop() -> asyncio.AbstractEventLoop:
    """A new event loop, with fine timers where the system's are not."""
    if sys.platform != "linux":
        return asyncio.new_event_loop()

    class FineEpoll(selectors.EpollSelector):
        """Waits for its own epoll first, and then only looks."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """What is ready within `timeout` seconds."""
            if timeout is None or timeout <= 0 or self.fileno() > _MOST_DESCRIPTOR:
                return super().select(timeout)
            select.select([self], [], [], timeout)
            return super().select(0)

    return asyncio.SelectorEventLoop(FineEpoll())
