"""One launcher a run directory: an advisory lock that dies with the processes that hold it.

The launcher hands the lock on to its children. So the directory stays locked until the last process of a run is gone,
also when the launcher itself was killed, and no second coordinator can open the journal beside a first one.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.failures import LaunchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME = "launch.lock"
# `is_locked` holds the lock for microseconds to find out; whoever comes in just then tries once more.
SECOND_TRY_S = 0.05


@contextmanager
def hold_lock(directory: Path) -> Iterator[int]:
    """Locks `directory`, which is made if need be; the descriptor is for children to inherit. LaunchError if taken."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / FILE_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(descriptor):
            time.sleep(SECOND_TRY_S)
            if not _try_lock(descriptor):
                raise LaunchError(
                    f"{directory}: another launch is running here; "
                    f"wait for it, or give this one another run.directory=…"
                )
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether processes of a run are at work in `directory`."""
    try:
        descriptor = os.open(directory / FILE_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, mode: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
