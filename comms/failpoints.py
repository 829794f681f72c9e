"""Named places at which a test can make a process fail: off unless DIST_TRAIN_FAILPOINTS says otherwise.

    DIST_TRAIN_FAILPOINTS="before-publish@3=kill;mid-stream=stop"     POINT[@ROUND]=ACTION, separated by semicolons
    DIST_TRAIN_FAILPOINTS_LOG=FILE                                   a line for each one that fired, before it acts

Actions: `kill` (SIGKILL to this process), `stop` (SIGSTOP; somebody else continues it), `cut` (every connection of this
process breaks), `full` (OSError: no space left on device), `corrupt` (a bit of the data that passes there flips; only
where there is data: see `spoil`). Each fires once. A test that injects a fault reads the log to be sure that it fired.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Action = Literal["kill", "stop", "cut", "full", "corrupt"]
Point = Literal[
    "before-publish",
    "encoded-payload",
    "mid-stream",
    "after-publish",
    "before-acknowledge",
    "saying-acknowledge",
    "between-commit-and-apply",
    "saying-applied",
    "during-catch-up",
    "during-snapshot-transfer",
    "inside-checkpoint",
    "coordinator-before-journal",
    "coordinator-after-journal",
]
ACTIONS: tuple[Action, ...] = get_args(Action)
POINTS: tuple[Point, ...] = get_args(Point)
_VARIABLE, _LOG_VARIABLE = "DIST_TRAIN_FAILPOINTS", "DIST_TRAIN_FAILPOINTS_LOG"


@dataclass(frozen=True)
class Failpoint:
    """What is to happen where."""

    point: Point
    round: int | None
    action: Action


def parse(text: str) -> list[Failpoint]:
    """The failpoints of an environment variable; ValueError names what does not exist."""
    parsed = []
    for item in filter(None, text.split(";")):
        place, _, action = item.partition("=")
        point, _, number = place.partition("@")
        if point not in POINTS or action not in ACTIONS or not (number.isdecimal() or not number):
            raise ValueError(f"{_VARIABLE}: {item!r} is not POINT[@ROUND]=ACTION; points: {', '.join(POINTS)}")
        parsed.append(Failpoint(point, int(number) if number else None, action))
    return parsed


_armed: list[Failpoint] = parse(os.environ.get(_VARIABLE, ""))


def arm(text: str) -> None:
    """Adds failpoints, written as in the environment variable, to those of this process. ValueError as `parse`."""
    _armed.extend(parse(text))


def reach(point: Point, round_number: int) -> None:
    """Marks a place in the code. Costs a look at an empty list when nothing is armed."""
    _take(point, round_number)


def spoil(point: Point, round_number: int, data: bytes) -> bytes:
    """Marks a place that data passes: `data`, or, when `corrupt` is armed here, the same with one bit flipped."""
    if _take(point, round_number) != "corrupt" or not data:
        return data
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _take(point: Point, round_number: int) -> Action | None:
    """Lets the first failpoint that is armed for this place act; what its action was."""
    for failpoint in _armed:
        if failpoint.point == point and failpoint.round in (None, round_number):
            _armed.remove(failpoint)
            _fire(failpoint, round_number)
            return failpoint.action
    return None


def _fire(failpoint: Failpoint, round_number: int) -> None:
    if log := os.environ.get(_LOG_VARIABLE):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{failpoint.point} {round_number} {failpoint.action} {os.getpid()}\n")
    match failpoint.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "cut":
            _cut_connections()
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "corrupt":
            pass  # what the data's own place does: see spoil


def _cut_connections() -> None:
    """Ends every TCP connection of this process, both directions; what listens goes on listening."""
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        connection.getpeername()
                        connection.shutdown(socket.SHUT_RDWR)
