"""What a command says when it fails: one line and an exit code for what may happen, a traceback for what may not.

2   a usage or config error: change the command or the file
1   something outside the config failed: a peer, a checkpoint, the disk
"""

from __future__ import annotations

import sys

from comms.address import BadAddress
from dist_train.config import ConfigError

PREFIX = "dist-train: "
# By name, because importing them costs seconds: an error of a module that was never imported cannot have occurred.
MISTAKES_LAZILY = (("comms.channel", "InsecureAddress"),)
EXPECTED_LAZILY = (("comms.errors", "CommsError"), ("dist_train.checkpoint", "CheckpointError"))


class LaunchError(Exception):
    """The launcher cannot start or go on with a run. The message is one line."""


def exit_code(error: BaseException) -> int | None:
    """The exit code that an expected error ends with; None for a bug."""
    if isinstance(error, (ConfigError, BadAddress, *_imported_errors(MISTAKES_LAZILY))):
        return 2
    expected: tuple[type[BaseException], ...] = (OSError, LaunchError, *_imported_errors(EXPECTED_LAZILY))
    return 1 if isinstance(error, expected) else None


def one_line(error: BaseException) -> str:
    """The error for a person, on one line whatever it carries."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _imported_errors(wanted: tuple[tuple[str, str], ...]) -> tuple[type[BaseException], ...]:
    found = (getattr(sys.modules.get(module), name, None) for module, name in wanted)
    return tuple(error for error in found if isinstance(error, type) and issubclass(error, BaseException))
