"""Starting again what has died: which replica, how often, and how soon. Pure; the launcher carries it out.

A replica may be several processes (the stages of a pipeline). When one of them fails the others are of no use, so all
are ended, and all are started again when the last of them is gone. Whoever made a config error would make it again.

A replica whose host can't be reached has not failed: it is tried again for as long as a lost host is awaited, and none
of its restarts is used up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CONFIG_ERROR = 2
# What ssh ends with when it can't reach its host, or can't any more. Nothing of ours does.
LOST_HOST = 255
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# Who has been there for so long after a loss is back; the next loss is another one.
BACK_AFTER_S = 60.0


@dataclass
class Loss:
    """A host that can't be reached, since when, and how often it was tried."""

    since_s: float
    tries: int = 0
    tried_s: float = 0.0
    is_final: bool = False


@dataclass
class Restarts:
    """How often each replica, by its `processes`, may still be started again."""

    processes: Mapping[str, tuple[str, ...]]
    """The processes of each replica."""
    allowed: int
    used: dict[str, int] = field(default_factory=dict)
    due_s: dict[str, float] = field(default_factory=dict)
    """When a replica of which all processes have ended is to be started again."""
    lost_host_deadline_s: float = 0.0
    lost: dict[str, Loss] = field(default_factory=dict)
    """The last loss of each replica that has ever lost a host."""

    @property
    def started_again(self) -> frozenset[str]:
        """The replicas that were ever started again."""
        return frozenset(self.used) | frozenset(self.lost)

    def replica_of(self, process: str) -> str | None:
        """Whose process it is; nobody's when it is the coordinator's."""
        return next((replica for replica, processes in self.processes.items() if process in processes), None)

    def left_behind(self, process: str, running: frozenset[str]) -> tuple[str, ...]:
        """The processes that are of no use any more, now that this one of their replica has failed."""
        replica = self.replica_of(process)
        return tuple(p for p in self.processes[replica] if p in running) if replica is not None else ()

    def plan(self, exits: Mapping[str, int], now_s: float) -> None:
        """Decides which replicas that have failed are started again, and when."""
        for replica, processes in self.processes.items():
            ended = [exits[process] for process in processes if process in exits]
            if replica in self.due_s or len(ended) < len(processes) or not any(ended) or CONFIG_ERROR in ended:
                continue
            if LOST_HOST in ended:
                self._await_host(replica, now_s)
            elif (used := self.used.get(replica, 0)) < self.allowed:
                self.used[replica] = used + 1
                self.due_s[replica] = now_s + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**used)

    def take_due(self, now_s: float) -> list[str]:
        """The replicas whose time has come; each is given out once."""
        due = [replica for replica, due_s in self.due_s.items() if due_s <= now_s]
        for replica in due:
            del self.due_s[replica]
            if replica in self.lost:
                self.lost[replica].tried_s = now_s
        return due

    def told(self, replica: str) -> str:
        """What is being done about a replica that was due, for a person."""
        if replica in self.lost and not self.used.get(replica):
            return "tried again: its host was lost"
        return f"started again ({self.used[replica]} of {self.allowed})"

    def give_up(self) -> None:
        """Starts nobody again: the run is over."""
        self.due_s.clear()

    def _await_host(self, replica: str, now_s: float) -> None:
        loss = self.lost.get(replica)
        if loss is None or (not loss.is_final and now_s - loss.tried_s > BACK_AFTER_S):
            loss = self.lost[replica] = Loss(since_s=now_s, tried_s=now_s)
        loss.is_final |= now_s - loss.since_s >= self.lost_host_deadline_s
        if not loss.is_final:
            self.due_s[replica] = now_s + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(loss.tries, 10))
            loss.tries += 1

    def final(self, exits: Mapping[str, int]) -> dict[str, int]:
        """How each replica has ended for good, by its worst process, and every process that is no replica's."""
        ended = {process: code for process, code in exits.items() if self.replica_of(process) is None}
        for replica, processes in self.processes.items():
            codes = [exits[process] for process in processes if process in exits]
            if replica not in self.due_s and len(codes) == len(processes):
                ended[replica] = CONFIG_ERROR if CONFIG_ERROR in codes else next((code for code in codes if code), 0)
        return ended
