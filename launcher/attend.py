"""The launcher's deputy on another machine: runs one process of a replica there, and ends it when the launcher is gone.

Its stdin comes through ssh. It reads EOF when the launcher has ended, and a byte every few seconds while it lives. When
the link is cut neither comes, and after `ssh.silence_s` that counts as an end, too: nothing of a run stays on a machine
that has lost its launcher. A later process of the same name waits until an earlier one is gone.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from dist_train.config import ConfigError
from launcher import members
from launcher.failures import PREFIX, LaunchError
from launcher.verdict import exit_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dist_train.config import Config
    from dist_train.run_directory import RunDirectory
    from launcher.supervisor import Command

GRACE_S = 10.0
LOOK_EVERY_S = 0.2
STDIN = 0
logger = logging.getLogger(__name__)


def attend(
    config: Config, directory: RunDirectory, replica: str, process: str, *, coordinator: str, config_digest: str
) -> int:
    """Runs a replica's process to its end; its exit code. ConfigError when the config here is another than there."""
    if config.digest() != config_digest:
        raise ConfigError(f"the config here has digest {config.digest()[:12]}, the launcher's {config_digest[:12]}")
    section = members.section_of(config, replica)
    place = section.processes.index(process)
    beside = members.processes_beside(config, section.machines[place])
    command = members.replica_commands(config, directory, replica, coordinator, beside=beside)[place]
    silence_s = config.ssh.silence_s
    with _alone_as(directory, command.member, patience_s=2 * silence_s + GRACE_S):
        return _run(command, silence_s)


@contextmanager
def _alone_as(directory: RunDirectory, member: str, patience_s: float) -> Iterator[None]:
    """Waits until no earlier process of that name is left here. LaunchError when it stays, or the launcher goes."""
    give_up_s = time.monotonic() + patience_s
    with (directory.path / f"{member}.attended.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_s:
                    raise LaunchError(f"an earlier process of {member} is still here after {patience_s:g} s") from None
                if select.select([STDIN], [], [], LOOK_EVERY_S)[0] and not os.read(STDIN, 4096):
                    raise LaunchError("the launcher is gone; ending") from None
                time.sleep(LOOK_EVERY_S)
        yield


def _run(command: Command, silence_s: float) -> int:
    ended, ending = os.pipe()
    child = subprocess.Popen(
        command.arguments,
        stdin=subprocess.PIPE,
        env={**os.environ, **command.environment},
        start_new_session=True,
    )
    try:
        threading.Thread(target=_wait, args=(child, ending), name="wait", daemon=True).start()
        if _outlasts(ended, silence_s):
            return _code(child.wait())
        _end(child)
        return 128 + signal.SIGTERM
    finally:
        _signal(child, signal.SIGKILL)  # also what the child itself has started and left behind
        os.close(ended)


def _wait(child: subprocess.Popen[bytes], ending: int) -> None:
    child.wait()
    os.close(ending)


def _outlasts(ended: int, silence_s: float) -> bool:
    """Whether the launcher is there until the child ends."""
    while True:
        readable, _, _ = select.select([STDIN, ended], [], [], silence_s)
        if ended in readable:
            return True
        if not readable:
            logger.error("%snot a word from the launcher in %g s; ending", PREFIX, silence_s)
            return False
        if not os.read(STDIN, 4096):
            logger.error("the launcher has let go; ending")
            return False


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _code(code: int) -> int:
    """The child's exit code, for ssh: a signal's becomes a number, and its name is said."""
    if code < 0:
        logger.error("%sthe process %s", PREFIX, exit_text(code))
        return 128 - code
    return code
