"""An event loop in a thread of its own: the network goes on while the program computes.

Other threads hand work over and wait for what comes of it. Each such wait ends as surely as the work is bounded, since
whoever waits is also told when

    the work ends          with a result, an error, or cancelled
    the thread dies        something in it raised what no task may keep (SystemExit), or it was stopped
    the loop stands still  something in it blocks: it does not even answer for `silence_s`
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from comms.errors import CommsError

T = TypeVar("T")
_STOP_S = 5.0
_LOOK_S = 1.0
"""How often whoever waits looks whether the loop still answers; and the least that counts as its silence."""


class LoopThread:
    """Runs coroutines for other threads."""

    def __init__(self, name: str, silence_s: float = 60.0, key: str = "") -> None:
        """`silence_s`: how long the loop may not answer, as the key `key` of the config says."""
        self._name = name
        self._silence_s = silence_s
        self._remedy = f" Raise {key} if this machine is only overloaded." if key else ""
        self._lock = threading.Lock()
        self._under_way = set[Future[Any]]()
        self._end = ""
        """Why nothing is done here any more."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begins `work` there. CommsError when the thread has ended; should it end later, the future fails."""
        with self._lock:
            if self._end:
                work.close()
                raise self._ended()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._under_way.add(future)
        future.add_done_callback(self._forget)
        return future

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Does `work` there and waits for it. CommsError when the thread ends, or the loop stands still."""
        return self.result(self.start(work))

    def result(self, future: Future[T]) -> T:
        """What comes of work that was begun here. CommsError when the thread ends, or the loop stands still."""
        while not futures.wait([future], _LOOK_S).done:
            self.require_answer()
        if future.cancelled() or not isinstance(future.exception(), Exception | None):
            raise self._ended()
        return future.result()

    def deliver(self, items: AsyncGenerator[T, None]) -> Delivery[T]:
        """Begins to run `items` there; what they give can be taken as it comes."""
        return Delivery(self, items)

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function there, soon; not at all when the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def require_answer(self) -> None:
        """Returns when the loop answers, or the thread has ended; CommsError when it does neither for `silence_s`."""
        answered, silent_s = threading.Event(), 0.0
        self.call(answered.set)
        # Looks are counted, not the clock read: while this process was stopped nobody was silent.
        while not answered.wait(_LOOK_S) and not self._end:
            silent_s += _LOOK_S
            if silent_s >= self._silence_s:
                raise CommsError(
                    f"{self._name}: its thread has not answered for {self._silence_s:g} s; something in it blocks."
                    + self._remedy
                )

    def stop(self) -> None:
        """Cancels what still runs there, and ends the thread."""
        self.call(self._loop.stop)
        self._thread.join(2 * _STOP_S)

    def _run(self) -> None:
        why = "was stopped"
        try:
            self._loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - nobody is above this thread who could hear of it
            why = f"died of {error!r}"
        finally:
            with self._lock:
                self._end = why
            with suppress(RuntimeError):  # told to stop once more
                self._loop.run_until_complete(_cancel_all())
            self._loop.close()
            self._fail_the_rest()

    def _fail_the_rest(self) -> None:
        """Ends what no loop will: most was cancelled."""
        with self._lock:
            under_way = list(self._under_way)
        for future in under_way:
            with suppress(futures.InvalidStateError):
                future.set_exception(self._ended())

    def _ended(self) -> CommsError:
        why = self._end or "was told to let it be"
        return CommsError(f"{self._name}: its thread {why}, and nothing comes of what it was to do")

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(future)


class _Over:
    """Nothing follows."""


_OVER = _Over()


class Delivery(Iterator[T]):
    """What an asynchronous generator on a loop gives, for another thread to take: in order, and then how it ended."""

    def __init__(self, loop: LoopThread, items: AsyncGenerator[T, None]) -> None:
        self._loop = loop
        self._queue = queue.Queue[T | _Over]()
        self.work = loop.start(self._run(items))
        """Done when nothing more will come."""
        self.work.add_done_callback(lambda _: self._queue.put(_OVER))

    def __next__(self) -> T:
        """Waits for the next one; at the end, and from then on, raises what the generator ended with."""
        while True:
            try:
                item = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                self._loop.require_answer()
                continue
            if isinstance(item, _Over):
                self._queue.put(item)
                self._loop.result(self.work)
                raise StopIteration
            return item

    def cancel(self) -> None:
        """Ends the generator where it is."""
        self.work.cancel()

    async def _run(self, items: AsyncGenerator[T, None]) -> None:
        async with aclosing(items):
            async for item in items:
                self._queue.put(item)


async def _cancel_all() -> None:
    """Cancels what runs, and leaves alone what does not end for it."""
    unfinished = asyncio.all_tasks() - {asyncio.current_task()}
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.wait(unfinished, timeout=_STOP_S)
    await asyncio.get_running_loop().shutdown_asyncgens()
