"""Starting again what has died: which replica, how often, and how soon. Pure; the launcher carries it out.

A replica may be several processes (the stages of a pipeline). When one of them fails the others are of no use, so all
are ended, and all are started again when the last of them is gone. Whoever made a config error would make it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CONFIG_ERROR = 2
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


@dataclass
class Restarts:
    """How often each replica, by its `processes`, may still be started again."""

    processes: Mapping[str, tuple[str, ...]]
    """The processes of each replica."""
    allowed: int
    used: dict[str, int] = field(default_factory=dict)
    due_s: dict[str, float] = field(default_factory=dict)
    """When a replica of which all processes have ended is to be started again."""

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
            if (used := self.used.get(replica, 0)) < self.allowed:
                self.used[replica] = used + 1
                self.due_s[replica] = now_s + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**used)

    def take_due(self, now_s: float) -> list[str]:
        """The replicas whose time has come; each is given out once."""
        due = [replica for replica, due_s in self.due_s.items() if due_s <= now_s]
        for replica in due:
            del self.due_s[replica]
        return due

    def final(self, exits: Mapping[str, int]) -> dict[str, int]:
        """How each replica has ended for good, by its worst process, and every process that is no replica's."""
        ended = {process: code for process, code in exits.items() if self.replica_of(process) is None}
        for replica, processes in self.processes.items():
            codes = [exits[process] for process in processes if process in exits]
            if replica not in self.due_s and len(codes) == len(processes):
                ended[replica] = CONFIG_ERROR if CONFIG_ERROR in codes else next((code for code in codes if code), 0)
        return ended
