"""What a process of a run writes for people: one log file each, every line `HH:MM:SS [member] …`.

Because every line says when and who, `sort -m` (or `cat … | sort -s`) of a run's logs reads as one story. The launcher
looks for a dead process's last words here too.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from launcher.failures import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

# Last words are at the end; a traceback of deep recursion is long but not longer than this.
TAIL_BYTES = 64 * 1024
TRACEBACK = "Traceback (most recent call last):"
LINE_PREFIX = re.compile(r"^\d\d:\d\d:\d\d \[[^\]]*\] ")
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
ROUND_PREFIX = re.compile(r"round (\d+):")
EXCEPTION_LINE = re.compile(r"^[A-Za-z_][\w.]*(?::\s.*)?$")


def level_name(record: logging.LogRecord) -> str:
    """A record's level as we write it: libraries give the levels other names for everybody."""
    return LEVELS.get(record.levelno, record.levelname.lower())


class MemberFormatter(logging.Formatter):
    """Begins every line of a record, also those of a traceback, with the time and the member."""

    def __init__(self, member: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self.member = member

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines, each with its prefix."""
        level = "" if record.levelno <= logging.INFO else f"{level_name(record)}: "
        prefix = f"{self.formatTime(record, self.datefmt)} [{self.member}] "
        return "\n".join(prefix + line for line in (level + super().format(record)).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a record: at, level, run, round, member, message. The round is the one last spoken of."""

    def __init__(self, member: str, run: str) -> None:
        super().__init__()
        self.member, self.run = member, run
        self.round = 0

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        message = super().format(record)
        if (spoken_of := ROUND_PREFIX.match(message)) is not None:
            self.round = int(spoken_of[1])
        facts = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": level_name(record),
            "run": self.run,
            "round": self.round,
            "member": self.member,
            "message": message,
        }
        return json.dumps(facts)


def configure(member: str) -> None:
    """Sends the logging and the warnings of this process to stderr, in the name of `member`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MemberFormatter(member))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def speak_json(member: str, run: str) -> None:
    """Lets this process log objects from now on, for programs that collect logs (watch.log_format)."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter(member, run))


def last_error(log: Path, start_bytes: int = 0) -> str:
    """What went wrong, in one line, by what was written to `log` from `start_bytes` on; empty when nothing was."""
    try:
        with log.open("rb") as file:
            end_bytes = file.seek(0, 2)
            file.seek(max(start_bytes, end_bytes - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [LINE_PREFIX.sub("", line).rstrip() for said in text.splitlines() for line in _message(said).splitlines()]
    return _said(lines) or _raised(lines) or next((line.strip() for line in reversed(lines) if line.strip()), "")


def _message(line: str) -> str:
    """What a line says, if it is one of `JsonFormatter`; the line itself otherwise."""
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line


def _said(lines: list[str]) -> str:
    return next((line.partition(PREFIX)[2] for line in reversed(lines) if PREFIX in line), "")


def _raised(lines: list[str]) -> str:
    """The exception line of the last traceback."""
    starts = [number for number, line in enumerate(lines) if line.endswith(TRACEBACK)]
    if not starts:
        return ""
    return next((line for line in lines[starts[-1] + 1 :] if EXCEPTION_LINE.match(line)), "")
