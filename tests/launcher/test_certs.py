"""Certificates and the operator's word, from the command line: made, checked before anything starts, obeyed."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from comms.agreement import COORDINATOR
from comms.certificates import OPERATOR, issue
from comms.join_token import read_token
from launcher.cli import run
from launcher.progress import RunStatus
from launcher.status import StatusPoller
from tests.comms.members import CoordinatorThread, rules
from tests.comms.strangers import tls

TinyRun = Callable[..., Path]
BOUND_S = 30.0
COMMAND = (sys.executable, "-m", "launcher")


def under_tls(file: Path) -> Path:
    """Makes a run one with certificates, which are still to be made; where they belong."""
    certs = file.parent / "certs"
    file.write_text(f'{file.read_text()}\n[security]\nmode = "tls"\ncertificates = "{certs}"\n')
    return certs


def test_every_member_of_a_run_gets_a_certificate(tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_run()
    certs = file.parent / "certs"
    assert run(["certs", str(certs), "--run", str(file), "--days", "40", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts["expires"]) == ["a", "b", "coordinator", "operator"]
    assert sorted(facts["written"]) == sorted(path.name for path in certs.iterdir())
    before = {path.name: path.read_bytes() for path in certs.iterdir()}
    assert run(["certs", str(certs), "--member", "b"]) == 0
    shown = capsys.readouterr().out
    assert "b: expires on" in shown
    after = {path.name: path.read_bytes() for path in certs.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"b.pem", "b.key"}
    assert not any(line in shown for line in before["ca.key"].decode().splitlines()[1:-1])
    assert read_token(certs / "run.token").decode() not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--run RUN.toml"),
        (["--member", "../a"], "no member's name"),
        (["--member", "ca"], "no member's name"),
        (["--member", "a", "--days", "0"], "at least 1"),
        (["--run", "nothing.toml"], "no such file"),
    ],
)
def test_certificates_that_can_not_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["certs", str(tmp_path / "certs"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "certs").exists()


def test_a_launch_without_its_certificates_starts_nothing(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_run()
    certs = under_tls(file)
    assert run(["launch", str(file)]) == 2
    assert "certs/ca.pem: No such file" in capsys.readouterr().err
    issue(certs, ["coordinator", "a", "b"], days=1)
    assert run(["launch", str(file)]) == 2
    assert "certs/operator.pem: No such file" in capsys.readouterr().err
    assert not (file.parent / "run").exists()


def test_a_run_under_tls_is_launched_and_stopped_by_its_operator(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_run(rounds=1_000_000)
    directory, certs = file.parent / "run", under_tls(file)
    issue(certs, ["coordinator", "operator", "a", "b"], days=1)
    with subprocess.Popen(
        [*COMMAND, "launch", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            started = process.stdout.readline()
            address = started.strip().rpartition(" ")[2]
            assert "round 1/" in process.stdout.readline()
            assert run(["stop", str(directory)]) == 2
            assert "say --coordinator HOST:PORT" in capsys.readouterr().err
            assert run(["stop", str(directory), "--coordinator", address, "--reason", "seen enough"]) == 0
            assert f"the coordinator at {address} ends tiny" in capsys.readouterr().out
            assert "stopped by the operator: seen enough" in process.communicate(timeout=BOUND_S)[0]
            assert process.returncode == 1
        finally:
            process.kill()
    assert run(["stop", str(directory), "--coordinator", address]) == 1
    assert f"the coordinator at {address} did not stop the run" in capsys.readouterr().err
    logs = "".join(log.read_text() for log in (directory / "logs").iterdir())
    assert read_token(certs / "run.token").decode() not in logs


def test_the_launcher_sees_a_run_under_tls(tmp_path: Path) -> None:
    security = tls(tmp_path / "certs")
    issue(tmp_path / "certs", [COORDINATOR, OPERATOR], days=1)
    running = CoordinatorThread(tmp_path, rules("a"), security=security)
    told = queue.Queue[RunStatus]()
    try:
        with StatusPoller(running.address, security(OPERATOR), told.put) as poller:
            poller.ask()
            assert told.get(timeout=BOUND_S).phase == "gather"
    finally:
        running.stop()
