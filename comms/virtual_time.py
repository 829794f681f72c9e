"""Simulated time, and threads that live in it: one of them runs at a time, so that every run is the same.

An actor is ordinary blocking code. While it runs, the world stands still; what it does takes the simulated seconds that
it says (`spend`), and those that really pass where they count (`is_measured`), and carries its own clock ahead of the
world's. It waits for the world only where it blocks: `catch_up`, `wait`. What it does to others before that is put down
for its own time (`at`), which the world has yet to reach: so nobody hears of anything too early.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from comms.errors import RunFailed


class Flows(Protocol):
    """What changes by itself as time passes."""

    @property
    def next_s(self) -> float:
        """When something happens next."""
        ...

    def finish(self, now_s: float) -> None:
        """Lets it happen."""
        ...


class _Ended(BaseException):
    """Unwinds an actor whose world is over."""


class World:
    """The clock, what is still to happen, and who lives by it."""

    def __init__(self, flows: Flows) -> None:
        self.now_s = 0.0
        self._flows = flows
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._actors: list[Actor] = []
        self._living = 0
        self._baton = threading.Semaphore(0)

    def at(self, when_s: float, happens: Callable[[], None]) -> None:
        """Plans something; of things at the same moment the one that was planned first comes first."""
        heapq.heappush(self._planned, (max(when_s, self.now_s), next(self._count), happens))

    def add(self, name: str, body: Callable[[Actor], None], *, is_measured: bool = False) -> Actor:
        """An actor that begins now."""
        actor = Actor(self, name, body, is_measured=is_measured)
        self._actors.append(actor)
        self._living += 1
        self.at(self.now_s, actor.resume)
        return actor

    def run(self) -> None:
        """Lets time pass until all actors are through. Raises what one raised; RunFailed when they wait for nothing."""
        try:
            while self._living:
                moment_s = min(self._flows.next_s, self._planned[0][0] if self._planned else math.inf)
                if moment_s == math.inf:
                    waiting = [actor.name for actor in self._actors if actor.is_alive]
                    raise RunFailed(f"nothing more can happen, and {', '.join(waiting[:8])} still wait")
                self._step(moment_s)
        finally:
            for actor in self._actors:
                actor.end()

    def _step(self, moment_s: float) -> None:
        self.now_s = max(self.now_s, moment_s)
        if self._flows.next_s <= moment_s:
            self._flows.finish(moment_s)
        else:
            heapq.heappop(self._planned)[2]()

    def hand_over(self, to: threading.Semaphore) -> None:
        """Lets an actor run until it hands back."""
        to.release()
        self._baton.acquire()

    def hand_back(self, *, for_good: bool = False) -> None:
        """Lets the world go on; `for_good` when an actor is through."""
        self._living -= for_good
        self._baton.release()


class Actor:
    """One thread of a world. All but `resume`, `wake` and `end`, which the world calls, is for its own body."""

    def __init__(self, world: World, name: str, body: Callable[[Actor], None], *, is_measured: bool) -> None:
        self.name = name
        self._world = world
        self._body = body
        self._is_measured = is_measured
        self._ahead_s = 0.0
        self._resumed_s = time.perf_counter()
        self._turn = threading.Semaphore(0)
        self._is_ended = self._is_waiting = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    @property
    def now_s(self) -> float:
        """Its own time: never before the world's."""
        measured_s = time.perf_counter() - self._resumed_s if self._is_measured else 0.0
        return self._world.now_s + self._ahead_s + measured_s

    def spend(self, seconds: float) -> None:
        """Lets so much time pass for itself."""
        self._ahead_s += seconds

    def go_back(self, to_s: float) -> None:
        """Goes back to when it began to wait, to do what could be done meanwhile; until `be_at` the present."""
        self._ahead_s -= max(0.0, self.now_s - to_s)

    def be_at(self, moment_s: float) -> None:
        """Is idle until then, if it is not past."""
        self._ahead_s += max(0.0, moment_s - self.now_s)

    def at(self, happens: Callable[[], None]) -> None:
        """Has the world do something at this actor's time."""
        self._world.at(self.now_s, happens)

    def catch_up(self) -> None:
        """Blocks until the world is where this actor is."""
        if (mine_s := self.now_s) > self._world.now_s:
            self._world.at(mine_s, self.resume)
            self._pause()

    def wait(self, is_there: Callable[[], bool]) -> None:
        """Blocks until it is, which somebody says with `wake`."""
        self.catch_up()
        while not is_there():
            self._is_waiting = True
            self._pause()

    # ---- the world's side ----

    @property
    def is_alive(self) -> bool:
        """Whether its body is still to come to its end."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Has an actor that waits look again."""
        if self._is_waiting:
            self._is_waiting = False
            self._world.at(self._world.now_s, self.resume)

    def resume(self) -> None:
        """Lets it run until it blocks or ends; raises what it raised."""
        if self._thread.ident is None:
            self._thread.start()
        self._world.hand_over(self._turn)
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Unwinds what is left of it."""
        self._is_ended = True
        if self._thread.ident is not None and self._thread.is_alive():
            self._world.hand_over(self._turn)
            self._thread.join()

    # ---- the thread ----

    def _live(self) -> None:
        self._turn.acquire()
        try:
            with suppress(_Ended):
                self._begin()
                self._body(self)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever resumed it
            self._error = error
        finally:
            self._world.hand_back(for_good=True)

    def _begin(self) -> None:
        if self._is_ended:
            raise _Ended
        self._ahead_s, self._resumed_s = 0.0, time.perf_counter()

    def _pause(self) -> None:
        if self._is_ended:
            raise _Ended
        self._world.hand_back()
        self._turn.acquire()
        self._begin()
