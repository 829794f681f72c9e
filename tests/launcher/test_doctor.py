"""`dist-train doctor`, against real coordinators and real disks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from comms.address import host_and_port
from comms.agreement import COORDINATOR
from comms.certificates import OPERATOR, issue
from comms.probe import connection
from comms.security import Loopback, Tls
from dist_train.config import ConfigError
from launcher.cli import run
from launcher.doctor import machine, patient
from launcher.doctor.finding import Finding
from launcher.doctor.machine import disk
from launcher.doctor.papers import papers
from launcher.doctor.way import clock, way
from launcher.door import Door
from tests.comms.strangers import expired, tls
from tests.comms.test_probe import serving
from tests.processes import Processes, processes
from tests.running import tiny, write_corpus

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk of its own")
CHECKS = [
    "version.python", "version.dist-train", "version.torch", "version.transformers", "version.grpcio",
    "version.protobuf", "version.numpy", "devices", "memory", "open-files", "disk", "certificates", "interface",
]  # fmt: skip
WAY = ["reachable", "run", "latency", "clock", "download", "upload", "way-back"]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "certs"
    issue(folder, [COORDINATOR, OPERATOR, "a", "b", "c"], days=30)
    return folder


@contextmanager
def waiting(folder: Path, **security: str) -> Iterator[Processes]:
    """A coordinator that waits for its replicas."""
    config = tiny(folder / "run", write_corpus(folder / "corpus", 3), security=security)
    with processes(config) as members:
        members.start_coordinator()
        yield members


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with waiting(tmp_path_factory.mktemp("plain")) as members:
        yield members


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, certs: Path) -> Iterator[Processes]:
    with waiting(tmp_path_factory.mktemp("secured"), mode="tls", certificates=str(certs)) as members:
        yield members


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run(["doctor", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def of(findings: Iterator[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def by_check(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in said["findings"]}


def test_all_is_well(plain: Processes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the JSON is what others may rely on."""
    monkeypatch.setattr(machine, "LEAST_DISK_BYTES", 0)
    code, said = doctor(capsys, plain.address, "--run", str(plain.directory.config))
    assert (code, said["ok"], said["address"]) == (0, True, plain.address)
    assert [finding["check"] for finding in said["findings"]] == CHECKS + WAY
    assert all(set(f) == {"check", "verdict", "fact", "remedy", "values"} for f in said["findings"])
    assert all(
        f["verdict"] in ("ok", "warning") and bool(f["remedy"]) == (f["verdict"] != "ok") for f in said["findings"]
    )
    found = by_check(said)
    assert found["run"]["values"] == {"run": "run", "route": "direct", "replicas": []}
    assert found["interface"]["values"] == {"host": "127.0.0.1", "interface": "lo"}
    assert abs(found["clock"]["values"]["coordinator_ahead_s"]) < 1.0
    assert found["way-back"]["values"]["address"].startswith("127.0.0.1:")
    assert all(found[way]["values"]["bits_per_second"] > 0 for way in ("download", "upload"))


def test_all_is_well_under_tls_and_the_table_says_so(
    secured: Processes, certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["doctor", secured.address, "--certificates", str(certs), "--id", "a"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert re.search(r"ok +way-back +the coordinator reaches this machine at 127\.0\.0\.1:\d+", said)
    assert said.splitlines()[-1].startswith("all is well")


def test_the_wrong_port(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = doctor(capsys, "127.0.0.1:9")
    assert (code, said["ok"]) == (1, False)
    last = said["findings"][-1]
    assert (last["check"], last["verdict"]) == ("reachable", "problem")
    assert "nothing listens at that port" in last["fact"]
    assert "address and port" in last["remedy"]


def test_plain_text_to_a_coordinator_under_tls(secured: Processes) -> None:
    finding = of(way(secured.address, Loopback(), discovers=False), "reachable")
    assert finding.verdict == "problem"
    assert "does not shake hands as coordinator" in finding.fact
    assert "--certificates DIR for tls" in finding.remedy


def test_certificates_of_another_authority(secured: Processes, tmp_path: Path) -> None:
    issue(tmp_path / "certs", ["a"], days=1)
    finding = of(way(secured.address, tls(tmp_path / "certs")("a"), discovers=False), "reachable")
    assert finding.verdict == "problem"
    assert "its own authority's" in finding.remedy


def test_a_machine_behind_a_nat_can_not_be_dialled_back(plain: Processes) -> None:
    """The coordinator sees another address than this machine has, and nobody listens there."""
    host, port = host_and_port(plain.address)

    def through_the_nat() -> socket.socket:
        return socket.create_connection((host, port), source_address=("127.0.0.5", 0))

    with Door(through_the_nat) as nat:
        finding = of(way(nat.address, Loopback(), discovers=False), "way-back")
    assert finding.verdict == "problem"
    assert finding.fact.startswith("the coordinator can't dial this machine at 127.0.0.5:")
    assert 'exchange.route = "relay"' in finding.remedy
    assert "it is seen there as 127.0.0.5, not 127.0.0.1: there is a NAT between" in finding.remedy


@pytest.mark.parametrize(
    ("ahead_s", "under_tls", "discovers", "verdict"),
    [
        (400.0, True, False, "problem"),
        (-400.0, True, False, "problem"),
        (400.0, False, False, "warning"),
        (5.0, True, True, "problem"),
        (5.0, True, False, "warning"),
        (0.0, True, True, "ok"),
    ],
)
def test_a_clock_that_is_off(
    tmp_path: Path, certs: Path, *, ahead_s: float, under_tls: bool, discovers: bool, verdict: str
) -> None:
    security = tls(certs) if under_tls else lambda _: Loopback()
    with (
        serving(tmp_path, security(COORDINATOR), ahead_s) as address,
        connection(address, COORDINATOR, security("a")) as channel,
    ):
        finding = of(clock(channel, security("a"), discovers=discovers), "clock")
    assert finding.verdict == verdict
    assert ("set-ntp" in finding.remedy) == (verdict != "ok")
    assert finding.values["coordinator_ahead_s"] == pytest.approx(ahead_s, abs=0.3)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@needs_root
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=1m") as folder:
        finding = disk(folder / "runs" / "demo")
    assert finding.verdict == "problem"
    assert "free; a small run needs" in finding.fact


@needs_root
def test_a_disk_that_fills_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_DISK_BYTES", 0)
    with mounted(tmp_path / "small", "size=1m") as folder:
        finding = disk(folder / "runs" / "demo")
    assert finding.verdict == "problem"
    assert "No space left" in finding.fact


@needs_root
def test_a_disk_that_can_only_be_read(tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "ro,size=1g") as folder:
        finding = disk(folder / "runs" / "demo")
    assert finding.verdict == "problem"
    assert "Read-only file system" in finding.fact
    assert "choose another run.directory" in finding.remedy


def test_a_disk_keeps_nothing_of_the_measurement(tmp_path: Path) -> None:
    assert disk(tmp_path / "runs" / "demo").check == "disk"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "is a file" in disk(tmp_path / "file" / "demo").fact


def test_certificates_are_looked_at_before_anything_is_dialled(certs: Path, tmp_path: Path) -> None:
    assert papers(tls(certs)("a")).verdict == "ok"
    finding = papers(tls(expired(certs, tmp_path / "old"))("a"))
    assert (finding.verdict, "renew it" in finding.fact) == ("problem", True)
    issue(tmp_path / "soon", ["a"], days=5)
    assert papers(tls(tmp_path / "soon")("a")).verdict == "warning"


def test_the_known_good_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == machine.PYTHON
    required = [*project["dependencies"], *project["optional-dependencies"]["dht"]]
    assert {f"{name}{range_}" for name, range_ in (machine.KNOWN_GOOD | machine.HIVEMIND).items()} <= set(required)


def test_the_member_is_the_one_whose_certificate_is_here(certs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("ca.pem", "b.pem", "b.key", "run.token"):
        (mine / name).write_bytes((certs / name).read_bytes())
    who = patient("127.0.0.1:7000", (), None, None, mine, insecure=False)
    assert isinstance(who.security, Tls)
    assert who.security.member == "b"
    with pytest.raises(ConfigError, match="holds no replica's certificate"):
        patient("127.0.0.1:7000", (), None, None, tmp_path, insecure=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["10.0.0.1:7000", "--certificates", "c", "--insecure"],
        ["demo@/ip4/10.0.0.1"],
        ["10.0.0.1:7000", "--bootstrap", "/ip4/10.0.0.1/tcp/1/p2p/x"],
    ],
)
def test_options_that_mean_nothing_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_plain_text_does_not_leave_this_machine_for_a_doctor_either(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = doctor(capsys, "192.0.2.1:7000")
    assert code == 1
    assert "plain text does not go there" in said["findings"][-1]["fact"]
