"""Certificates on the disk: what is taken, what is renewed in a run that goes on, and what is refused by its name."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from comms.agreement import COORDINATOR
from comms.certificates import TOKEN_FILE, CertificateError, issue
from comms.channel import Channels
from comms.credentials import KeyFiles, read_keys
from tests.comms.members import Member
from tests.comms.strangers import (
    MEMBERS,
    call,
    coordinator,
    expired,
    get,
    status,
    tls,
)

NOBODY = "127.0.0.1:9"


def test_rotation_without_stopping(tmp_path: Path) -> None:
    """Both ends take renewed files up: the server at once, the client with its next channel; half-written ones wait."""
    folder = tmp_path / "certs"
    issue(folder, MEMBERS, days=30)
    with coordinator(tmp_path, folder) as running:
        before = certificate_of(running.address, folder)
        members = [
            Member(tmp_path, name, running.address, before_report=lambda _: renew(folder), security=tls(folder))
            for name in "ab"
        ]
        (folder / f"{COORDINATOR}.pem").write_text("half of a certificate")
        assert certificate_of(running.address, folder) == before, "what is broken is not taken"
        renew(folder)
        assert certificate_of(running.address, folder) != before
        for member in members:
            member.join()
        running.join()
    assert running.error is None


_renewing = threading.Lock()


def renew(folder: Path) -> None:
    with _renewing:
        issue(folder, MEMBERS, days=60)


def certificate_of(address: str, folder: Path) -> str:
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=str(folder / "ca.pem")) if folder else ""


def test_a_client_opens_new_channels_with_renewed_files(tmp_path: Path) -> None:
    issue(tmp_path, "a", days=30)

    async def dial() -> None:
        channels = Channels(tls(tmp_path)("a"))
        before = channels.to("b", NOBODY)
        assert channels.to("b", NOBODY) is before
        assert channels.to("c", NOBODY) is not before, "another name at the same address"
        issue(tmp_path, "a", days=60)
        after = channels.to("b", NOBODY)
        assert after is not before
        assert channels.to("b", NOBODY) is after
        await channels.close()

    asyncio.run(dial())


def test_a_client_takes_renewed_files_up_once(tmp_path: Path) -> None:
    issue(tmp_path, "a", days=30)
    files = KeyFiles(tmp_path, "a")
    assert files.renewed() is None
    issue(tmp_path, "a", days=60)
    renewed = files.renewed()
    assert renewed is not None
    assert renewed == files.keys
    assert files.renewed() is None
    (tmp_path / "a.key").write_text("half of a key")
    assert files.renewed() is None
    assert files.keys == renewed
    (tmp_path / "a.key").unlink()
    assert files.renewed() is None


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "a.pem").unlink(), r"a\.pem: No such file.*dist-train certs"),
        (lambda folder: (folder / "a.key").unlink(), r"a\.key: No such file"),
        (lambda folder: (folder / "ca.pem").unlink(), r"ca\.pem: No such file"),
        (lambda folder: (folder / "a.pem").write_text("nonsense"), "no PEM file"),
        (lambda folder: (folder / "a.key").write_text("nonsense"), "no PEM file"),
        (lambda folder: (folder / "b.key").replace(folder / "a.key"), "does not belong to"),
        (lambda folder: [(folder / f"b.{x}").replace(folder / f"a.{x}") for x in ("pem", "key")], "names .*not a"),
    ],
)
def test_files_that_nobody_would_believe_are_named(tmp_path: Path, harm: Callable[[Path], object], said: str) -> None:
    issue(tmp_path, "ab", days=30)
    harm(tmp_path)
    with pytest.raises(CertificateError, match=said):
        read_keys(tmp_path, "a")


def test_what_another_authority_issued_or_time_has_ended_is_named(tmp_path: Path, certs: Path, foreign: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name, source in (("ca.pem", certs), ("a.pem", foreign), ("a.key", foreign)):
        (mine / name).write_bytes((source / name).read_bytes())
    with pytest.raises(CertificateError, match="was not issued by"):
        read_keys(mine, "a")
    with pytest.raises(CertificateError, match="is valid from .* renew it"):
        read_keys(expired(certs, tmp_path / "old"), "a")


@pytest.mark.parametrize("member", ["ca", "../a", "", "a/b", ".a", "-a", "a\n", "x" * 65])
def test_a_name_that_is_none_gets_no_certificate(tmp_path: Path, member: str) -> None:
    with pytest.raises(CertificateError, match="no member's name"):
        issue(tmp_path / "certs", ["a", member], days=1)
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("member", ["a", "Node_7.x-1", "_", "x" * 64, "a."])
def test_every_name_that_a_replica_can_have_works_in_a_certificate(tmp_path: Path, member: str) -> None:
    issue(tmp_path / "certs", [COORDINATOR, member], days=1)
    with coordinator(tmp_path, tmp_path / "certs") as running:
        assert call(running.address, tls(tmp_path / "certs")(member), get(member, bytes(32))) is not None
        assert call(running.address, tls(tmp_path / "certs")(member), status) is None


def test_private_files_are_their_owners(tmp_path: Path) -> None:
    issue(tmp_path, "a", days=1)
    private = {path.name for path in tmp_path.iterdir() if path.stat().st_mode & 0o077 == 0}
    assert private == {"ca.key", "a.key", TOKEN_FILE}
