"""Stories: whole runs of real processes, to their end and through everything that may end them."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TinyRun = Callable[..., Path]
BOUND_S = 30.0
COMMAND = (sys.executable, "-m", "launcher")
pytestmark = pytest.mark.timeout(110)


@contextmanager
def launched(file: Path) -> Iterator[subprocess.Popen[str]]:
    """A launch whose output can be read; killed if the test leaves it running."""
    with subprocess.Popen([*COMMAND, "launch", str(file)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], said: str) -> str:
    """Reads lines up to the first with `said` in it."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if said in line:
            return line
    raise AssertionError(f"{said!r} was never said, but: {''.join(seen)}")


def pid_of_replica(file: Path, replica: str) -> int:
    """From the log header's command line, by what /proc says runs now."""
    wanted = [os.fsencode(part) for part in (str(file.parent / "run"), "--id", replica)]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if all(part in arguments for part in wanted):
            return int(folder.name)
    raise AssertionError(f"replica {replica} is not running")


def wait_until_all_are_gone(file: Path) -> None:
    """Every process of a run holds its lock; so the lock comes free with the last of them."""
    with (file.parent / "run" / "launch.lock").open("rb") as lock:
        taker = threading.Thread(target=fcntl.flock, args=(lock, fcntl.LOCK_EX), daemon=True)
        taker.start()
        taker.join(BOUND_S)
        assert not taker.is_alive(), "a process of the run is still there"


def test_a_run_to_its_end_its_report_and_its_model(tiny_run: TinyRun) -> None:
    file = tiny_run(rounds=2)
    directory = file.parent / "run"
    done = subprocess.run([*COMMAND, "launch", str(file)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1/2" in done.stdout
    assert "round 2/2" in done.stdout
    assert "tiny is complete: all 2 rounds are committed" in done.stdout

    shown = subprocess.run([*COMMAND, "report", str(directory), "--json"], capture_output=True, timeout=30, check=True)
    report = json.loads(shown.stdout)
    assert (report["status"], report["rounds"]) == ("complete", 2)
    counted = {part["kind"]: part for part in report["traffic"]}
    assert counted["pseudo_gradient"]["sent_bytes"] == counted["pseudo_gradient"]["received_bytes"] > 0
    assert all(detail["contributors"] == ["a", "b"] for detail in report["rounds_detail"])

    model = file.parent / "model"
    exported = subprocess.run(
        [*COMMAND, "export", str(directory), str(model)], capture_output=True, text=True, timeout=60, check=True
    )
    assert exported.stdout.startswith("round 2 of ")
    assert (model / "config.json").is_file()


def test_a_run_loses_its_launcher_is_resumed_and_loses_a_replica(tiny_run: TinyRun) -> None:
    file = tiny_run(rounds=1_000_000)
    with launched(file) as launcher:
        read_until(launcher, "round 2/")
        launcher.kill()
    wait_until_all_are_gone(file)
    with launched(file) as launcher:
        resumed = read_until(launcher, "resuming tiny after round ")
        committed = int(resumed.split("after round ")[1].split(" of ")[0])
        assert committed >= 2
        assert round_of(read_until(launcher, " loss ")) > committed
        os.kill(pid_of_replica(file, "b"), signal.SIGKILL)
        assert "b.log" in read_until(launcher, "replica b was killed by SIGKILL")
        without_b = round_of(read_until(launcher, "without b"))
        assert round_of(read_until(launcher, " loss ")) > without_b
        launcher.send_signal(signal.SIGINT)
        assert "launch it again to resume" in read_until(launcher, "stopped after round")
        assert launcher.wait(BOUND_S) == 130
    wait_until_all_are_gone(file)


def round_of(line: str) -> int:
    return int(line.split()[1].split("/", maxsplit=1)[0])
