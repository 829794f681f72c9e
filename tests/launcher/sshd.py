"""An ssh server of our own for tests: throw-away host and user keys, a high port, optionally inside a namespace."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="no ssh and sshd here: apt-get install openssh-server"
)
BOUND_S = 20.0
SERVER = """
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel ERROR
"""
CLIENT = """
Host {alias}
  HostName {address}
  Port {port}
  User {user}
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
"""


@dataclass
class SshServer:
    """One server, and the alias under which `config_file` knows it."""

    alias: str
    address: str
    port: int
    folder: Path
    prefix: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def config_file(self) -> str:
        """What an ssh_config(5) needs to reach it."""
        user = os.environ.get("USER", "root")
        return CLIENT.format(alias=self.alias, address=self.address, port=self.port, user=user, folder=self.folder)

    def start(self) -> None:
        """Listens, in a session of its own, so that all of its connections can be ended with it."""
        assert SSHD is not None
        Path("/run/sshd").mkdir(exist_ok=True)  # it insists on it
        arguments = [*self.prefix, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stderr=log, start_new_session=True)
        self._wait_until_it_listens()

    def stop(self) -> None:
        """Hears nobody any more; connections that are open stay."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(BOUND_S)
            self.process = None

    def _wait_until_it_listens(self) -> None:
        give_up_s = time.monotonic() + BOUND_S
        probe = ["bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{self.port}"]
        while subprocess.run([*self.prefix, *probe], capture_output=True, check=False).returncode:
            assert time.monotonic() < give_up_s, (self.folder / "sshd.log").read_text()
            time.sleep(0.05)  # sshd has no way to say that it listens


@contextmanager
def ssh_server(
    folder: Path, alias: str = "far", *, address: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Iterator[SshServer]:
    """A running server; gone at the end."""
    folder.mkdir(parents=True)
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=BOUND_S
        )
    port = 22022 if prefix else _free_port()
    key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[{address}]:{port} {key}\n")
    (folder / "sshd_config").write_text(SERVER.format(address=address, port=port, folder=folder))
    server = SshServer(alias, address, port, folder, prefix)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
