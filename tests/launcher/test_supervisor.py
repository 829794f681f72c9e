"""Real processes under the supervisor: what they announce, how they end, and that nothing of them stays."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.supervisor import Announced, Command, Event, Exited, Interrupted, Supervisor, Told

BOUND_S = 20.0
ANNOUNCE = "import os, sys; fd = int(sys.argv[-1]); os.write(fd, b'here\\n'); os.close(fd)\n"
PAUSE = "import signal; signal.pause()\n"


def python(tmp_path: Path, script: str, member: str = "m", **options: object) -> Command:
    command = (sys.executable, "-c", script)
    return Command(member, command, log=tmp_path / "logs" / f"{member}.log", **options)  # type: ignore[arg-type]


def next_event(supervisor: Supervisor) -> Event:
    event = supervisor.next_event(BOUND_S)
    assert event is not None, "no event came"
    return event


@contextmanager
def death_notice() -> Iterator[tuple[int, int]]:
    """A pipe: (end to read, end to be inherited). The former is at EOF when nobody holds the latter any more."""
    read_end, write_end = os.pipe()
    try:
        yield read_end, write_end
    finally:
        os.close(read_end)


def assert_closes(read_end: int) -> None:
    readable, _, _ = select.select([read_end], [], [], BOUND_S)
    assert readable, "a process is still there"
    assert os.read(read_end, 1) == b""


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_is_an_event(tmp_path: Path, code: int) -> None:
    with Supervisor() as supervisor:
        supervisor.start(python(tmp_path, f"raise SystemExit({code})"))
        assert supervisor.running == {"m"}
        assert next_event(supervisor) == Exited("m", code)
        assert supervisor.running == frozenset()
        assert supervisor.exits == {"m": code}


def test_death_by_signal_is_minus_the_signal(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start(python(tmp_path, "import os; os.kill(os.getpid(), 9)"))
        assert next_event(supervisor) == Exited("m", -9)


def test_both_streams_are_appended_to_the_log_below_a_header(tmp_path: Path) -> None:
    command = python(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)")
    with Supervisor() as supervisor:
        assert supervisor.start(command) == 0
        next_event(supervisor)
    with Supervisor() as supervisor:
        second_start = supervisor.start(command)
        next_event(supervisor)
    lines = command.log.read_bytes()[second_start:].decode().splitlines()
    assert "[m] ----" in lines[0]
    assert sorted(lines[1:]) == ["err", "out"]
    assert command.log.read_text().count("started:") == 2


def test_a_child_gets_its_environment_beside_ours(tmp_path: Path) -> None:
    command = python(tmp_path, "import os; print(os.environ['PATH'] != '', os.environ['X'])", environment={"X": "y"})
    with Supervisor() as supervisor:
        supervisor.start(command)
        next_event(supervisor)
    assert command.log.read_text().endswith("True y\n")


def test_an_announcement_is_an_event(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start(python(tmp_path, ANNOUNCE + PAUSE, announces=True))
        assert next_event(supervisor) == Announced("m", "here")


def test_who_dies_without_announcing_is_heard_of(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start(python(tmp_path, "raise SystemExit(4)", announces=True))
        assert next_event(supervisor) == Exited("m", 4)


def test_leaving_ends_all(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        for member in ("a", "b"):
            supervisor.start(python(tmp_path, ANNOUNCE + PAUSE, member, announces=True))
        assert {type(next_event(supervisor)), type(next_event(supervisor))} == {Announced}
    assert supervisor.exits == {"a": -signal.SIGTERM, "b": -signal.SIGTERM}


def test_who_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANNOUNCE + "while True: signal.pause()\n"
    with Supervisor(grace_s=0.2) as supervisor:
        supervisor.start(python(tmp_path, deaf, announces=True))
        assert next_event(supervisor) == Announced("m", "here")
    assert supervisor.exits == {"m": -signal.SIGKILL}


def test_a_stopped_process_is_ended_too(tmp_path: Path) -> None:
    with Supervisor(grace_s=0.2) as supervisor, death_notice() as (read_end, write_end):
        stopped = ANNOUNCE + "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\n"
        supervisor.start(python(tmp_path, stopped, announces=True, kept_descriptors=(write_end,)))
        os.close(write_end)
        assert next_event(supervisor) == Announced("m", "here")
        supervisor.stop()
        assert_closes(read_end)


def test_what_a_child_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    leaves_a_child = (
        "import subprocess, sys\n"
        "fd = int(sys.argv[1])\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], pass_fds=[fd])\n"
    )
    with Supervisor() as supervisor, death_notice() as (read_end, write_end):
        command = (sys.executable, "-c", leaves_a_child, str(write_end))
        supervisor.start(Command("m", command, log=tmp_path / "m.log", kept_descriptors=(write_end,)))
        os.close(write_end)
        assert next_event(supervisor) == Exited("m", 0)
        assert_closes(read_end)


def test_a_signal_is_an_event_and_cuts_the_grace_short(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANNOUNCE + "while True: signal.pause()\n"
    before = signal.getsignal(signal.SIGINT)
    supervisor = Supervisor(grace_s=3600.0)
    with supervisor.interrupts(), supervisor:
        supervisor.start(python(tmp_path, deaf, announces=True))
        assert next_event(supervisor) == Announced("m", "here")
        os.kill(os.getpid(), signal.SIGINT)
        assert next_event(supervisor) == Interrupted(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # not taken yet when the grace of an hour begins
    assert supervisor.exits == {"m": -signal.SIGKILL}
    assert signal.getsignal(signal.SIGINT) is before


def test_news_from_outside_is_an_event() -> None:
    with Supervisor() as supervisor:
        assert supervisor.next_event(0.0) is None
        supervisor.tell("news")
        assert next_event(supervisor) == Told("news")


def test_a_program_that_is_not_there_raises_and_leaks_nothing(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    with Supervisor() as supervisor, pytest.raises(FileNotFoundError):
        supervisor.start(Command("m", (str(tmp_path / "nothing"),), log=tmp_path / "m.log", announces=True))
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_far_child_gets_beats_and_is_ended_by_eof_not_by_a_signal(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n"
        "assert os.read(0, 1) == os.read(0, 1) == b'\\n'\n"
        "fd = int(sys.argv[-1]); os.write(fd, b'two beats\\n'); os.close(fd)\n"
        "while os.read(0, 1): pass\n"
        "sys.exit(5)\n"
    )
    with Supervisor() as supervisor:
        supervisor.start(python(tmp_path, script, announces=True, beat_s=0.05))
        assert next_event(supervisor) == Announced("m", "two beats")
        supervisor.end(["m"])
        assert next_event(supervisor) == Exited("m", 5)
