"""The launcher's deputy: runs what it is told, and ends it when its launcher is gone or silent."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import pytest

BOUND_S = 20.0
ATTENDANT = """
import sys
from pathlib import Path
from launcher import logs
from launcher.attend import _run
from launcher.supervisor import Command
logs.configure("m")
sys.exit(_run(Command("m", (sys.executable, "-c", sys.argv[1]), Path("unused")), float(sys.argv[2])))
"""
PAUSE = "import signal; print('ready', flush=True); signal.pause()"


@dataclass
class Attendant:
    """A deputy at work, and its three streams."""

    process: "subprocess.Popen[str]"
    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]


@contextmanager
def attendant(script: str, silence_s: float) -> Iterator[Attendant]:
    command = [sys.executable, "-c", ATTENDANT, script, str(silence_s)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield Attendant(process, process.stdin, process.stdout, process.stderr)
        finally:
            process.kill()


@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_childs_end_is_its_own(script: str, code: int) -> None:
    with attendant(script, 60.0) as deputy:
        deputy.stdout.read()
        errors = deputy.stderr.read()
        assert deputy.process.wait(BOUND_S) == code
    assert ("was killed by SIGKILL" in errors) == (code == 137)


@pytest.mark.parametrize(
    ("silence_s", "said"), [(60.0, "the launcher has let go"), (0.5, "not a word from the launcher")]
)
def test_the_child_ends_with_the_launcher(silence_s: float, said: str) -> None:
    with attendant(PAUSE, silence_s) as deputy:
        if silence_s > 1.0:
            assert deputy.stdout.readline() == "ready\n"
            deputy.stdin.close()
        assert deputy.process.wait(BOUND_S) == 143
        assert said in deputy.stderr.read()
        deputy.stdout.read()  # it is the child's, too: this ends when the child is gone


def test_beats_keep_it_alive() -> None:
    with attendant("import sys, time; time.sleep(3); sys.exit(4)", 2.0) as deputy:
        while deputy.process.poll() is None:
            deputy.stdin.write("\n")
            deputy.stdin.flush()
            with suppress(subprocess.TimeoutExpired):
                deputy.process.wait(0.2)
        assert deputy.process.returncode == 4
