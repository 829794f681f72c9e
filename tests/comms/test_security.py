"""The attack table of docs/security.md: who is let in, as whom, and with what. Real handshakes, a named error for each.

Its other rows: test_join_token.py, test_certificates.py, test_limits.py, test_slow_streams.py.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import grpc
import pytest

from comms.agreement import COORDINATOR, Finish, RoundPlan
from comms.certificates import OPERATOR, TOKEN_FILE
from comms.credentials import KeyFiles, read_keys
from comms.errors import AccessError, Refused, RunFailed, Unreachable
from comms.join_token import read_token
from comms.security import Loopback
from comms.transport_settings import Route
from tests.comms.members import Member, join_of, transport_of
from tests.comms.strangers import (
    assert_refused,
    assert_still_serves,
    attend,
    call,
    coordinator,
    expired,
    get,
    is_let_in,
    proved,
    put,
    status,
    stop,
    tls,
)

Code = grpc.StatusCode
NOBODY = "127.0.0.1:9"


@pytest.mark.parametrize("route", ["direct", "relay"])
def test_a_run_under_tls_is_a_run(tmp_path: Path, certs: Path, route: Route) -> None:
    with coordinator(tmp_path, certs, route=route) as running:
        members = [Member(tmp_path, name, running.address, route=route, security=tls(certs)) for name in "ab"]
        for member in members:
            member.join()
        running.join()
    assert running.error is None
    assert len(members[0].applied) == 3
    assert (members[0].applied, members[0].contents) == (members[1].applied, members[1].contents)


# ---- who shows no certificate, or none that counts ----


def test_no_certificate(tmp_path: Path, certs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A handshake that fails is silent on the wire, so that strangers learn nothing; its reason is in the log."""
    with coordinator(tmp_path, certs) as running:
        assert is_let_in(running.address, certs, shown=certs)
        assert not is_let_in(running.address, certs, shown=None)
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in capfd.readouterr().err
        assert_still_serves(running, certs)


def test_plain_text(tmp_path: Path, certs: Path) -> None:
    with coordinator(tmp_path, certs) as running:
        assert_refused(call(running.address, Loopback(), attend(proved(certs, "a"))), Code.UNAVAILABLE)
        assert_still_serves(running, certs)


def test_wrong_authority(tmp_path: Path, certs: Path, foreign: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with coordinator(tmp_path, certs) as running:
        assert not is_let_in(running.address, certs, shown=foreign)
        assert "CERTIFICATE_VERIFY_FAILED: unable to get local issuer" in capfd.readouterr().err
        assert_still_serves(running, certs)


def test_expired(tmp_path: Path, certs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old = expired(certs, tmp_path / "old")
    with coordinator(tmp_path, certs) as running:
        assert not is_let_in(running.address, certs, shown=old)
        assert "CERTIFICATE_VERIFY_FAILED: certificate has expired" in capfd.readouterr().err
        assert_still_serves(running, certs)


def test_a_server_that_is_not_who_it_should_be_gets_no_word(tmp_path: Path, certs: Path, foreign: Path) -> None:
    with coordinator(tmp_path, certs) as running:
        asked = call(running.address, tls(certs)("a"), status, peer="b")
        assert_refused(asked, Code.UNAVAILABLE, "Hostname Verification")
        assert_refused(call(running.address, tls(foreign)("a"), status), Code.UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED")


def test_a_member_that_is_not_let_in_says_what_the_handshake_said(tmp_path: Path, certs: Path, foreign: Path) -> None:
    with (
        coordinator(tmp_path, certs) as running,
        transport_of(tmp_path, "a", running.address, outage_deadline_s=1.0, security=tls(foreign)) as a,
    ):
        a.join(join_of("a", a))
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            a.receive()


# ---- who shows a certificate, and says something else ----


def test_another_members_name(tmp_path: Path, certs: Path) -> None:
    said = ("WrongName", "'a'", "'b'")
    digest = hashlib.sha256(b"x").digest()
    with coordinator(tmp_path, certs, route="relay") as running:
        for work in (attend(proved(certs, "a")), put(b"x", digest=digest, replica="a"), get("a", digest)):
            assert_refused(call(running.address, tls(certs)("b"), work), Code.PERMISSION_DENIED, *said)
        assert_refused(
            call(running.address, tls(certs)("c"), put(b"x", digest=digest, replica="c")),
            Code.PERMISSION_DENIED, "WrongName", "'c' is none of this run's replicas",
        )  # fmt: skip
        assert_still_serves(running, certs)
    assert not list((tmp_path / "relayed").iterdir())


def test_another_members_name_at_a_replica(tmp_path: Path, certs: Path) -> None:
    with transport_of(tmp_path, "a", NOBODY, security=tls(certs)) as a:
        digest = bytes.fromhex(a.publish(1, "embed", b"x").digest)
        refused = call(a.address, tls(certs)("b"), get(COORDINATOR, digest), peer="a")
        assert_refused(refused, Code.PERMISSION_DENIED, "WrongName", "'b'")
        assert call(a.address, tls(certs)("b"), get("b", digest), peer="a") is None


def test_a_replica_with_another_ones_certificate_ends_with_both_names(tmp_path: Path, certs: Path) -> None:
    with (
        coordinator(tmp_path, certs) as running,
        transport_of(tmp_path, "a", running.address, security=lambda _: tls(certs)("b")) as a,
    ):
        a.join(join_of("a", a))
        with pytest.raises(Refused, match="WrongName.*'a'.*'b'"):
            a.receive()


def test_only_the_operator_stops_a_run(tmp_path: Path, certs: Path) -> None:
    with coordinator(tmp_path, certs) as running:
        for member in ("a", COORDINATOR):
            refused = call(running.address, tls(certs)(member), stop)
            assert_refused(refused, Code.PERMISSION_DENIED, "NotTheOperator", repr(member))
        with transport_of(tmp_path, "a", running.address, security=tls(certs)) as a:
            a.join(join_of("a", a))
            with transport_of(tmp_path, "b", running.address, security=tls(certs)) as b:
                b.join(join_of("b", b))
                assert isinstance(a.receive(), RoundPlan)
                assert call(running.address, tls(certs)(OPERATOR), stop) is None
                assert a.receive() == Finish("stopped by the operator: enough")
        running.join()
    assert isinstance(running.error, RunFailed)


def test_every_access_error_has_a_code() -> None:
    from comms.caller import _CODES  # noqa: PLC0415

    assert set(AccessError.__subclasses__()) == set(_CODES)


def test_secrets_do_not_show(certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        shown = repr(read_keys(certs, "a")) + repr(tls(certs)("a")) + str(KeyFiles(certs, "a").keys) + caplog.text
    assert "PRIVATE KEY" not in shown
    assert read_token(certs / TOKEN_FILE).decode() not in shown


def test_every_row_of_the_attack_table_has_its_tests() -> None:
    root = Path(__file__).parents[2]
    defined = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    rows = (root / "docs" / "security.md").read_text(encoding="utf-8").split("## The attack table")[1].split("\n## ")[0]
    named = re.findall(r"`(test_\w+)(…?)`", rows)
    assert len(named) > 20
    for name, shortened in named:
        assert f"def {name}" + ("" if shortened else "(") in defined
