"""Plays a run's schedule: puts the links of each moment in force, by the clock and by the rounds that are committed."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

from dist_train.links import Begun, begin, differences, link_plan, members_of, plan_at
from dist_train.report.metrics import MetricsTail
from launcher.failures import LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory
    from launcher.network import SimulatedNetwork

LOOK_EVERY_S = 0.1


class Director:
    """Changes `network` from a thread of its own while the `with` block goes on; does nothing without a schedule.

    When a change can't be enforced it interrupts the launch, and the `with` block ends with a LaunchError.
    """

    def __init__(
        self, config: Config, directory: RunDirectory, network: SimulatedNetwork, say: Callable[[str], None]
    ) -> None:
        self._config, self._network, self._say = config, network, say
        self._tail = MetricsTail(directory.metrics)
        self._plan = link_plan(config)
        self._begun: Begun = {}
        self._open_round = 1
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._play, name="director", daemon=True)

    def __enter__(self) -> Self:
        if self._config.simulate.change:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._failure is not None:
            raise LaunchError(f"the links could not be changed as simulate.change wants it: {self._failure}")

    def _play(self) -> None:
        started_s = time.monotonic()
        try:
            while not self._over.wait(LOOK_EVERY_S):
                self._look(time.monotonic() - started_s)
        except Exception as error:  # noqa: BLE001 - whatever it was, the limits no longer hold
            self._failure = error
            main_thread = threading.main_thread().ident
            if main_thread is not None:
                signal.pthread_kill(main_thread, signal.SIGINT)  # to this very thread, so that it need not wait

    def _look(self, now_s: float) -> None:
        for row in self._tail.new_rows():
            self._open_round = max(self._open_round, row.round + 1)
        self._begun = begin(self._config, self._begun, now_s, self._open_round)
        plan = plan_at(self._config, self._begun, now_s)
        if plan != self._plan:
            for change in differences(self._plan, plan, members_of(self._config)):
                self._say(f"round {self._open_round}, {now_s:.1f} s: {change}")
            self._network.become(plan)
            self._plan = plan
