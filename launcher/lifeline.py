"""What ties a child to its launcher: the child ends when the launcher is gone, however it went.

The launcher holds the writing end of the child's stdin open and never writes. When the launcher ends, by SIGKILL too,
the kernel closes that end, the child reads EOF, and ends itself. This needs no polling and no Linux-only call.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

GRACE_S = 10.0
STDIN = 0

logger = logging.getLogger(__name__)


def hold() -> None:
    """Watches stdin from now on, in a daemon thread, and ends this process when it closes."""
    threading.Thread(target=_end_with_launcher, name="lifeline", daemon=True).start()


def unwind_on_sigterm() -> None:
    """Makes the first SIGTERM end this process by SystemExit, so that open files are closed; a second one kills."""
    signal.signal(signal.SIGTERM, _unwind)


def announce(descriptor: int, text: str) -> None:
    """Tells the launcher `text` through the pipe that it gave this process, once."""
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:
        pipe.write(f"{text}\n")


def _end_with_launcher() -> None:
    while os.read(STDIN, 4096):
        pass
    logger.error("the launcher is gone; ending")
    main_thread = threading.main_thread().ident
    if main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGTERM)  # to this very thread, so that its blocking call is broken
    # It may hang where no signal gets through to, and nothing may outlive the run. This thread dies with the main one.
    time.sleep(GRACE_S)
    _kill_own_group()


def _kill_own_group() -> None:
    own = os.getpid()
    if os.getpgrp() == own:
        os.killpg(own, signal.SIGKILL)
    os.kill(own, signal.SIGKILL)


def _unwind(signal_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal_number, signal.SIG_DFL)
    logger.info("ended by %s", signal.Signals(signal_number).name)
    raise SystemExit(128 + signal_number)
