"""The loop with fine timers: it is an event loop like any other, and never wakes anybody too soon."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator

import pytest

from comms.fine_timers import fine_loop

PATIENCE_S = 30.0


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = fine_loop()
    yield loop
    loop.close()


def test_nobody_is_woken_too_soon_nor_in_another_order(loop: asyncio.AbstractEventLoop) -> None:
    woken = list[float]()

    async def wait(pause_s: float) -> None:
        begun_s = time.monotonic()
        await asyncio.sleep(pause_s)
        assert time.monotonic() - begun_s >= pause_s
        woken.append(pause_s)

    pauses_s = [0.0131, 0.0003, 0.0052, 0.0, 0.0291]

    async def all_of_them() -> None:
        await asyncio.gather(*map(wait, pauses_s))

    loop.run_until_complete(all_of_them())
    assert woken == sorted(pauses_s)


def test_what_comes_ends_a_long_wait(loop: asyncio.AbstractEventLoop) -> None:
    """A socket, and another thread: neither waits for the timer that the loop is in."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)

        async def hear() -> tuple[bytes, int]:
            timer = loop.call_later(PATIENCE_S, pytest.fail)
            asked = loop.run_in_executor(None, os.getpid)
            loop.call_later(0.002, far.send, b"here")
            heard = await loop.sock_recv(near, 100), await asked
            timer.cancel()
            return heard

        begun_s = time.monotonic()
        assert loop.run_until_complete(hear()) == (b"here", os.getpid())
        assert time.monotonic() - begun_s < PATIENCE_S
