"""Whoever waits for a loop's work hears of it: when it ends, when its thread dies, when the loop stands still."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from comms.errors import CommsError
from comms.loop_thread import LoopThread

DIED = r"tests: its thread died of SystemExit\(3\)"
BLOCKED = r"tests: its thread has not answered for 1 s; something in it blocks\. Raise a\.key"


async def for_ever() -> NoReturn:
    while True:
        await asyncio.sleep(3600)


async def numbers(then: Callable[[], object]) -> AsyncGenerator[int, None]:
    yield 1
    await asyncio.sleep(0)
    yield 2
    then()
    await for_ever()


@contextmanager
def loop_thread() -> Iterator[LoopThread]:
    loop = LoopThread("tests", 1.0, "a.key")
    try:
        yield loop
    finally:
        loop.stop()


@contextmanager
def blocked(loop: LoopThread) -> Iterator[None]:
    """Something on the loop waits for a disk that does not answer."""
    release = threading.Event()
    loop.call(release.wait)
    try:
        yield
    finally:
        release.set()


def die() -> None:
    sys.exit(3)


def test_work_gives_what_it_returns_or_raises() -> None:
    async def fails() -> None:
        raise KeyError("it")

    with loop_thread() as loop:
        assert loop.wait(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(KeyError, match="it"):
            loop.wait(fails())


def test_what_is_delivered_comes_in_order_and_ends_as_its_generator_did() -> None:
    async def three() -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number

    async def one_and_an_error() -> AsyncGenerator[int, None]:
        yield 1
        raise KeyError("it")

    with loop_thread() as loop:
        assert list(loop.deliver(three())) == [0, 1, 2]
        failing = loop.deliver(one_and_an_error())
        assert next(failing) == 1
        for _ in range(2):
            with pytest.raises(KeyError, match="it"):
                next(failing)


def test_a_generator_that_is_cancelled_cleans_up() -> None:
    cleaned = threading.Event()

    async def careful() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await for_ever()
        finally:
            cleaned.set()

    with loop_thread() as loop:
        delivery = loop.deliver(careful())
        assert next(delivery) == 1
        delivery.cancel()
        assert cleaned.wait(30)
        with pytest.raises(CommsError, match="nothing comes of"):
            next(delivery)


def test_whoever_waits_when_the_thread_dies_is_told_so() -> None:
    with loop_thread() as loop:
        waits, delivery = loop.start(for_ever()), loop.deliver(numbers(die))
        assert [next(delivery), next(delivery)] == [1, 2]
        with pytest.raises(CommsError, match=DIED):
            next(delivery)
        with pytest.raises(CommsError, match=DIED):
            loop.result(waits)


def test_the_work_that_the_thread_died_of_does_not_end_its_waiter() -> None:
    async def dies() -> None:
        die()

    with loop_thread() as loop, pytest.raises(CommsError, match=DIED):
        loop.wait(dies())


def test_nothing_is_begun_on_a_thread_that_has_ended() -> None:
    with loop_thread() as loop:
        loop.stop()
        with pytest.raises(CommsError, match="was stopped"):
            loop.wait(for_ever())
        loop.call(die)


def test_whoever_waits_for_a_loop_that_stands_still_is_told_so() -> None:
    with loop_thread() as loop, blocked(loop):
        with pytest.raises(CommsError, match=BLOCKED):
            loop.wait(asyncio.sleep(0))
        with pytest.raises(CommsError, match=BLOCKED):
            next(loop.deliver(numbers(die)))


def test_a_loop_that_has_much_to_wait_for_is_waited_for() -> None:
    with loop_thread() as loop:
        assert loop.wait(asyncio.sleep(2.5, "late")) == "late"  # longer than it may be silent


def test_what_is_under_way_at_the_stop_is_cancelled() -> None:
    cancelled = threading.Event()

    async def careful() -> None:
        try:
            await for_ever()
        finally:
            cancelled.set()

    with loop_thread() as loop:
        begun = loop.start(careful())
        loop.wait(asyncio.sleep(0))
        loop.stop()
        assert cancelled.is_set()
        with pytest.raises(CommsError, match="was stopped"):
            loop.result(begun)
