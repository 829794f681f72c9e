"""The coordinator of virtual members: the real round machine, fed with simulated time.

It writes the metrics as the real one does, its times in seconds since the beginning. It keeps no journal: a virtual run
is not resumed. Members cannot be lost, so nobody's silence counts; all other deadlines are those of the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from comms import wire
from comms.agreement import (
    COORDINATOR,
    CommittedRound,
    CoordinatorMessage,
    Heartbeat,
    Join,
    MemberMessage,
    RoundSummary,
)
from comms.channel import MOST_MESSAGE_BYTES
from comms.errors import CommsError
from comms.marks import Marks
from comms.round_deadlines import next_deadline_s
from comms.rounds import advance
from comms.run_state import (
    Event,
    Heard,
    Phase,
    Record,
    RoundRules,
    RunState,
    Send,
    Summarise,
    Ticked,
)
from comms.virtual_network import VirtualNetwork

OnRound = Callable[[int], None]


class VirtualCoordinator:
    """Hears the members of `network`, and answers."""

    def __init__(self, network: VirtualNetwork, rules: RoundRules, metrics: Path, on_open: OnRound) -> None:
        self._network = network
        self._metrics = metrics
        self._on_open = on_open
        self._state = RunState(replace(rules, liveness_deadline_s=math.inf, reconnect_deadline_s=math.inf))
        self._listeners = dict[str, Callable[[CoordinatorMessage], None]]()
        self._marks = Marks()
        self._tick_s = math.inf
        self.history: list[CommittedRound] = []

    @property
    def failure(self) -> str:
        """Why the run ended early; nothing when it did not."""
        return self._state.failure if self._state.phase is Phase.FAILED else ""

    def attend(self, join: Join, listen: Callable[[CoordinatorMessage], None]) -> None:
        """A member's conversation begins; `listen` hears what is said to it when it arrives."""
        self._listeners[join.replica] = listen
        self.hear(join.replica, join)

    def hear(self, member: str, message: MemberMessage) -> None:
        """A member's message arrives. Heartbeats say nothing here: nobody's silence counts."""
        if not isinstance(message, Heartbeat):
            self._feed(Heard(member, message))

    def _feed(self, event: Event) -> None:
        now_s, before = self._network.world.now_s, self._state
        self._state, actions = advance(self._state, event, now_s)
        if isinstance(event, Heard):
            self._marks.heard(event.replica, event.message, now_s)
        for action in actions:
            match action:
                case Record(committed):
                    self.history.append(committed)
                    self._marks.committed(committed.round, now_s)
                case Summarise(summary):
                    self._write(summary)
                case Send(member, message):
                    self._say(member, message)
        if self._state.phase is Phase.WORK and (before.phase, before.round) != (Phase.WORK, self._state.round):
            self._marks.opened(self._state.round, now_s)
            self._on_open(self._state.round)
        self._plan_tick()

    def _say(self, member: str, message: CoordinatorMessage) -> None:
        num_bytes = wire.coordinator_message_to_pb(message).ByteSize()
        if num_bytes > MOST_MESSAGE_BYTES:
            raise CommsError(
                f"a message of {num_bytes} bytes to {member}: more than {MOST_MESSAGE_BYTES} can't be said"
            )
        self._network.say(COORDINATOR, member, num_bytes, lambda: self._listeners[member](message))

    def _plan_tick(self) -> None:
        deadline_s = next_deadline_s(self._state, self._network.world.now_s)
        if deadline_s < self._tick_s:
            self._tick_s = deadline_s
            self._network.world.at(deadline_s, lambda: self._tick(deadline_s))

    def _tick(self, planned_s: float) -> None:
        if planned_s == self._tick_s:
            self._tick_s = math.inf
            self._feed(Ticked())

    def _write(self, summary: RoundSummary) -> None:
        row = asdict(summary) | asdict(self._marks.of(summary.round))
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._network.ledger(COORDINATOR).flush(summary.round)
