"""One launch a run directory, also when its launcher is gone and its children are not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.failures import LaunchError
from launcher.lock import hold_lock, is_locked


def test_a_second_holder_is_refused_in_one_line(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
        with pytest.raises(LaunchError, match="another launch is running here") as raised, hold_lock(tmp_path / "run"):
            pass
    assert "\n" not in str(raised.value)


def test_it_is_free_again_afterwards(tmp_path: Path) -> None:
    with hold_lock(tmp_path):
        pass
    assert not is_locked(tmp_path)
    with hold_lock(tmp_path):
        pass


def test_looking_does_not_make_a_directory(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_child_that_inherited_it_holds_it_on(tmp_path: Path) -> None:
    with hold_lock(tmp_path) as descriptor:
        script = "import signal; signal.pause()"
        child = subprocess.Popen([sys.executable, "-c", script], pass_fds=[descriptor])
    try:
        assert is_locked(tmp_path)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(20)
    assert not is_locked(tmp_path)
