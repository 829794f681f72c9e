"""Runs over real ssh: what a host gets, what comes home, and that nothing stays there without its launcher."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_train.config import Config, ConfigError, load
from launcher.cli import run
from launcher.parcel import code_folder
from launcher.ssh import check, ssh
from tests.launcher.sshd import SshServer, needs_sshd, ssh_server

TinyRun = Callable[..., Path]
COMMAND = (sys.executable, "-m", "launcher")
BOUND_S = 60.0
FAR = """
host = "far"
[launch]
backend = "ssh"
[ssh]
directory = "{folder}/far"
python = "{python}"
code = "{code}"
config_file = "{folder}/ssh_config"
silence_s = 6
[security]
mode = "tls"
certificates = "{folder}/certs"
"""


def far_run(tiny_run: TinyRun, server: SshServer, *, address: str, rounds: int, code: str = "installed") -> Path:
    """The config of a run whose replica b is on `server`, with its certificates."""
    file = tiny_run(rounds)
    folder = file.parent
    (folder / "ssh_config").write_text(server.config_file)
    text = file.read_text().replace("[exchange]", f'[exchange]\naddress = "{address}:0"')
    file.write_text(text + FAR.format(folder=folder, python=sys.executable, code=code))
    subprocess.run(
        [*COMMAND, "certs", folder / "certs", "--run", file], check=True, capture_output=True, timeout=BOUND_S
    )
    return file


@pytest.fixture
def own_address() -> str:
    """An address of this machine that is no loopback; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but the loopback's")
        return str(probe.getsockname()[0])


@pytest.mark.cluster
@pytest.mark.timeout(240)
@needs_sshd
def test_a_run_over_ssh_to_its_end(tiny_run: TinyRun, tmp_path: Path, own_address: str) -> None:
    with ssh_server(tmp_path / "sshd") as server:
        file = far_run(tiny_run, server, address=own_address, rounds=2, code="send")
        done = subprocess.run([*COMMAND, "launch", file], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny is complete: all 2 rounds are committed" in done.stdout
    directory = tmp_path / "run"
    assert "far has Python 3." in (log := (directory / "logs" / "b.log").read_text())
    assert "round 2: applied" in log
    shown = subprocess.run([*COMMAND, "report", directory, "--json"], capture_output=True, timeout=60, check=True)
    report = json.loads(shown.stdout)
    assert all(detail["contributors"] == ["a", "b"] for detail in report["rounds_detail"])
    # What b counted on its host is in the report: everything that one of them sent the other has received.
    (payloads,) = [part for part in report["traffic"] if part["kind"] == "pseudo_gradient"]
    assert payloads["sent_bytes"] == payloads["received_bytes"] > 0
    assert (tmp_path / "far" / code_folder() / "dist_train" / "round.py").is_file()
    (there,) = (tmp_path / "far").glob("tiny-*")
    keys = sorted(path.name for path in (there / "certs").iterdir())
    assert keys == ["b.key", "b.pem", "ca.pem", "run.token"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (there / "certs").iterdir())
    assert load(there / "config.toml").digest() == load(file).digest()


@pytest.mark.cluster
@needs_sshd
def test_an_unknown_host_key_is_refused_and_nobody_is_asked(tiny_run: TinyRun, tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd") as server:
        (tmp_path / "ssh_config").write_text(server.config_file)
        config = far_config(tiny_run, tmp_path)
        known = subprocess.run(ssh(config, "far", "true"), capture_output=True, timeout=BOUND_S, check=False)
        assert known.returncode == 0, known.stderr
        (tmp_path / "sshd" / "known_hosts").write_text("")
        done = subprocess.run(ssh(config, "far", "true"), capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


@pytest.mark.cluster
@needs_sshd
def test_a_host_without_the_interpreter_is_a_config_error(
    capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, tmp_path: Path, own_address: str
) -> None:
    with ssh_server(tmp_path / "sshd") as server:
        file = far_run(tiny_run, server, address=own_address, rounds=1)
        text = (
            file.read_text()
            .replace(sys.executable, "/no/such/python")
            .replace("[exchange]", "[exchange]\nmin_replicas=2")
        )
        file.write_text(text)
        assert run(["launch", str(file)]) == 2
    captured = capsys.readouterr()
    assert 'ssh.python = "/no/such/python" can\'t be run on far' in captured.out
    assert "1 of 2 replicas are left, and exchange.min_replicas = 2" in captured.err


# ---- two hosts, joined by a link that can be cut ----


@contextmanager
def two_hosts() -> Iterator[tuple[list[str], list[str], Callable[[str], None]]]:
    """Two namespaces and a link: how to run something in either, and what sets the link "up" or "down"."""
    here, there = f"dt-here-{os.getpid()}", f"dt-there-{os.getpid()}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=BOUND_S)

    try:
        for name in (here, there):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", here, "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", there)
        for name, address in ((here, "198.18.7.1/24"), (there, "198.18.7.2/24")):
            ip("-n", name, "addr", "add", address, "dev", "link0")
            ip("-n", name, "link", "set", "link0", "up")
        enter = ["ip", "netns", "exec"]
        yield [*enter, here], [*enter, there], lambda state: ip("-n", there, "link", "set", "link0", state)
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=BOUND_S)


def may_make_namespaces() -> bool:
    if shutil.which("ip") is None:
        return False
    name = f"dt-may-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made


@contextmanager
def launched(prefix: Sequence[str], file: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*prefix, *COMMAND, "launch", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], said: str) -> str:
    """Reads lines up to the first in which `said`, a regular expression, is found."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.search(said, line):
            return line
    raise AssertionError(f"{said!r} was never said, but: {''.join(seen)}")


def read_until_round(process: subprocess.Popen[str], wanted: int) -> None:
    """Reads up to that round or a later one, made by both replicas.

    A coordinator that resumes writes the rows again of rounds that the one before it had committed and not told yet,
    so the first rows are no sign that anybody is there.
    """
    while int(re.findall(r"round (\d+)/", read_until(process, r"round \d+/(?!.*without)"))[0]) < wanted:
        pass


def wait_until_nothing_runs_in(folder: Path) -> None:
    """Waits for the last process that has `folder`, or a run's folder in it, on its command line."""
    wanted = [os.fsencode(str(folder)), *(os.fsencode(path.name) for path in (folder / "far").glob("tiny-*"))]
    give_up_s = time.monotonic() + BOUND_S
    while left := [
        line for line in command_lines() if any(each in line for each in wanted) and b"\0-m\0launcher\0" in line
    ]:
        assert time.monotonic() < give_up_s, left
        time.sleep(0.1)  # they are no children of ours


def num_joins(folder: Path, replica: str) -> int:
    """How often the coordinator has let a replica in, in all launches."""
    return (folder / "run" / "logs" / "coordinator.log").read_text().count(f" {replica} joins from ")


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            yield (path / "cmdline").read_bytes()
        except OSError:
            continue


@pytest.mark.cluster
@pytest.mark.timeout(400)
@needs_sshd
def test_a_launcher_dies_and_a_host_is_lost_and_comes_back(tiny_run: TinyRun, tmp_path: Path) -> None:
    if not may_make_namespaces():
        pytest.skip("network namespaces can't be made here: Linux and root")
    with (
        two_hosts() as (here, there, set_link),
        ssh_server(tmp_path / "sshd", address="198.18.7.2", prefix=there) as far,
    ):
        file = far_run(tiny_run, far, address="198.18.7.1", rounds=1_000_000)
        with launched(here, file) as launcher:
            read_until(launcher, "round 2/")
            launcher.kill()
        wait_until_nothing_runs_in(tmp_path)

        with launched(here, file) as launcher:
            resumed = read_until(launcher, "resuming tiny after round ")
            read_until_round(launcher, int(re.findall(r"after round (\d+)", resumed)[0]) + 3)
            set_link("down")
            read_until(launcher, "replica b lost its host")
            read_until(launcher, r"round \d+/.*without b")
            joins = num_joins(tmp_path, "b")
            set_link("up")
            # It joins again. Its first round may be far off: the other one's are short, and it has to catch up.
            give_up_s = time.monotonic() + 3 * BOUND_S
            while num_joins(tmp_path, "b") == joins:
                assert time.monotonic() < give_up_s, (tmp_path / "run" / "logs" / "b.log").read_text()
                read_until(launcher, r"round \d+/|tried again")
            launcher.send_signal(signal.SIGINT)
            read_until(launcher, "stopped after round .* launch it again to resume")
            assert launcher.wait(BOUND_S) == 130
        wait_until_nothing_runs_in(tmp_path)


# ---- what is refused before anything is started ----


def far_config(tiny_run: TinyRun, folder: Path, *overrides: str) -> Config:
    file = tiny_run(1)
    file.write_text(file.read_text() + FAR.format(folder=folder, python="python3", code="send"))
    return load(file, overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["security.mode=loopback"], 'replica b is on far, and security.mode = "loopback" never leaves this machine'),
        (["security.mode=insecure"], 'replica b is on far, which can\'t dial exchange.address = "127.0.0.1:0"'),
        (["exchange.address=0.0.0.0:7000"], "say where the hosts reach this machine"),
        (["exchange.address=nonsense"], "exchange.address: address 'nonsense' is not of the form host:port"),
    ],
)
def test_what_hosts_could_not_reach_is_refused(
    tiny_run: TinyRun, tmp_path: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(far_config(tiny_run, tmp_path, *overrides))
    assert said in str(caught.value)


def test_ssh_without_a_host_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match="no .* has a host"):
        check(load(tiny_run(1), ["launch.backend=ssh"]))
