"""Network namespaces without names: the kernel ends them with the last process and descriptor that holds them.

So nothing is left behind however a launcher ends: by SIGKILL too, its descriptors close, its members end with it (see
lifeline), and the namespaces go with them, and every interface and queue inside. There is nothing to collect.

A thread enters and leaves a namespace by itself, and a process that it starts meanwhile is born inside.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"


class Namespace:
    """One network namespace, held open by a descriptor."""

    def __init__(self) -> None:
        """OSError where the kernel has none or we may not make one."""
        before = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("unshare", CLONE_NEWNET)
            try:
                self.descriptor = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _call("setns", before, CLONE_NEWNET)
        finally:
            os.close(before)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Has this thread inside."""
        before = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self.descriptor, CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", before, CLONE_NEWNET)
        finally:
            os.close(before)

    def close(self) -> None:
        """Lets go of it; those inside hold it still."""
        os.close(self.descriptor)


def move_into(path: str) -> None:
    """Puts this thread, and what it starts from now on, into the namespace that `path` leads to. OSError if refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", descriptor, CLONE_NEWNET)
    finally:
        os.close(descriptor)


def _call(name: str, *arguments: int) -> None:
    """A call of libc that `os` has from Python 3.12 on only."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(f"this system has no {name}()")
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
