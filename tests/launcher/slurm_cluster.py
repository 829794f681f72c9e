"""A Slurm cluster on this machine for tests: one controller and four nodes, with folders and ports of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
needs_slurm = pytest.mark.skipif(
    any(shutil.which(program, path=PATH) is None for program in PROGRAMS) or os.geteuid() != 0,
    reason="no Slurm here, or not root: apt-get install slurm-wlm munge",
)
NODES = 4
BOUND_S = 60.0
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
JobRequeue=1
ReturnToService=2
KillWait=20
MinJobAge=600
{nodes}
PartitionName=all Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster that takes jobs; the environment in which Slurm's commands find it. Gone at the end."""
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "state").mkdir()
    ports = _free_ports(NODES + 1)
    host = socket.gethostname()
    nodes = "\n".join(
        f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs=1 State=UNKNOWN"
        for n in range(1, NODES + 1)
    )
    file = folder / "slurm.conf"
    file.write_text(CONFIG.format(host=host, controller=ports[0], folder=folder, nodes=nodes, count=NODES))
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(file)}
    daemons = list[subprocess.Popen[bytes]]()

    def start(*arguments: str) -> None:
        with (folder / "daemons.log").open("ab") as log:
            daemons.append(subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True))

    try:
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        munge = ("--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}")
        files = (
            f"--pid-file={folder}/munged.pid",
            f"--seed-file={folder}/munge.seed",
            f"--log-file={folder}/munge.log",
        )
        start("munged", *munge, *files)
        _wait_for((folder / "munge.socket").exists, folder)
        start("slurmctld", "-D")
        for n in range(1, NODES + 1):
            (folder / f"spool-n{n}").mkdir()
            start("slurmd", "-D", "-N", f"n{n}")
        _wait_for(lambda: _idle_nodes(environment) == NODES, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], env=environment, capture_output=True, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(10.0)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _idle_nodes(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split().count("idle")


def _wait_for(is_so: Callable[[], bool], folder: Path) -> None:
    give_up_s = time.monotonic() + BOUND_S
    while not is_so():
        assert time.monotonic() < give_up_s, (folder / "daemons.log").read_text()[-2000:]
        time.sleep(0.2)  # daemons that do not say when they are ready


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
