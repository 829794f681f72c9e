"""A child of a launcher that was killed ends by itself."""

import os
import select
import signal
import subprocess
import sys

import pytest

BOUND_S = 20.0
# A launcher of one child: prints the child's pid when the child is ready, and then does nothing until it is killed.
LAUNCHER = """
import signal, sys
from pathlib import Path
from launcher.supervisor import Announced, Command, Supervisor
child, log, notice_fd = sys.argv[1:]
command = Command("child", (sys.executable, "-c", child), Path(log), announces=True, kept_descriptors=(int(notice_fd),))
with Supervisor() as supervisor:
    supervisor.start(command)
    assert isinstance(supervisor.next_event(20.0), Announced)
    print("ready", flush=True)
    signal.pause()
"""
TIED = """
import signal, sys
from launcher import lifeline, logs
logs.configure("child")
lifeline.GRACE_S = 0.2
{preparation}
lifeline.hold()
lifeline.announce(int(sys.argv[-1]), "ready")
while True: signal.pause()
"""


@pytest.mark.parametrize(
    "preparation",
    [
        pytest.param("", id="plain"),
        pytest.param("lifeline.unwind_on_sigterm()", id="unwinding"),
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="deaf to SIGTERM"),
    ],
)
def test_a_child_ends_when_its_launcher_is_killed(tmp_path: object, preparation: str) -> None:
    log = f"{tmp_path}/child.log"
    read_end, write_end = os.pipe()
    arguments = [sys.executable, "-c", LAUNCHER, TIED.format(preparation=preparation), log, str(write_end)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, pass_fds=[write_end], text=True) as launcher:
        os.close(write_end)
        try:
            assert launcher.stdout is not None
            assert launcher.stdout.readline() == "ready\n"
        finally:
            launcher.send_signal(signal.SIGKILL)
    # Launcher and child held the other end; it is closed when both are gone.
    try:
        assert select.select([read_end], [], [], BOUND_S)[0], "the child has outlived its launcher"
        assert os.read(read_end, 1) == b""
    finally:
        os.close(read_end)


def test_sigterm_unwinds_so_that_files_are_closed() -> None:
    script = (
        "import signal\n"
        "from launcher.lifeline import unwind_on_sigterm\n"
        "unwind_on_sigterm()\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    while True: signal.pause()\n"
        "finally:\n"
        "    print('closed', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.terminate()
        assert child.stdout.readline() == "closed\n"
        assert child.wait(BOUND_S) == 128 + signal.SIGTERM
