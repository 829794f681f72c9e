"""Records of addresses: who signed them, for which run, and for how long."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.agreement import COORDINATOR
from comms.certificates import issue
from comms.record import CLOCK_LEAD_S, MOST_LIFETIME_S, BadRecord, Record, newest, opened, sealed
from comms.security import Loopback, Tls
from protos import discovery_pb2 as pb
from tests.comms.strangers import MEMBERS, RUN, tls

NOW_S = time.time()
RECORD = Record(RUN, COORDINATOR, "192.0.2.1:7000", NOW_S, NOW_S + 3600.0)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "certs"
    issue(folder, MEMBERS, days=30)
    return folder


def security(certs: Path, member: str) -> Tls:
    found = tls(certs)(member)
    assert isinstance(found, Tls)
    return found


def test_a_signed_record_says_what_its_member_said(certs: Path) -> None:
    signed = sealed(RECORD, security(certs, COORDINATOR))
    assert opened(signed, RUN, security(certs, "a")) == RECORD
    assert opened(sealed(RECORD, Loopback()), RUN, Loopback()) == RECORD


def refused(certs: Path, sealed_record: bytes, now_s: float = NOW_S) -> str:
    with pytest.raises(BadRecord) as caught:
        opened(sealed_record, RUN, security(certs, "a"), now_s)
    return str(caught.value)


def test_an_unsigned_record_is_refused(certs: Path) -> None:
    assert refused(certs, sealed(RECORD, Loopback())) == "the record of coordinator is not signed"


def test_a_forged_record_is_refused(certs: Path, tmp_path: Path) -> None:
    envelope = pb.AddressRecord.FromString(sealed(RECORD, security(certs, COORDINATOR)))
    statement = pb.AddressStatement.FromString(envelope.statement)
    statement.address = "203.0.113.66:7000"
    envelope.statement = statement.SerializeToString()
    assert "the signature of the record of coordinator is not that" in refused(certs, envelope.SerializeToString())
    issue(tmp_path / "foreign", MEMBERS, days=30)
    assert "of another authority" in refused(certs, sealed(RECORD, security(tmp_path / "foreign", COORDINATOR)))


def test_a_member_speaks_for_itself_alone(certs: Path) -> None:
    complaint = refused(certs, sealed(RECORD, security(certs, "a")))
    assert complaint == "the record of coordinator bears the certificate of ['a.dist-train.internal']"


def test_a_record_of_another_run_is_refused(certs: Path) -> None:
    other = replace(RECORD, run="other")
    assert (
        refused(certs, sealed(other, security(certs, COORDINATOR))) == f"a record is of the run 'other', not of '{RUN}'"
    )


@pytest.mark.parametrize(
    ("published_s", "good_s", "complaint"),
    [
        (-60.0, 60.0, "expired 0 s ago"),
        (-3600.0, 3000.0, "expired 600 s ago"),
        (0.0, MOST_LIFETIME_S + 1, "at most 3600 s are"),
        (0.0, -1.0, "at most 3600 s are"),
        (0.0, float("nan"), "at most 3600 s are"),
        (CLOCK_LEAD_S + 1, 60.0, "ahead of this machine's clock"),
    ],
)
def test_a_record_is_good_for_its_time(certs: Path, published_s: float, good_s: float, complaint: str) -> None:
    at_s = NOW_S + published_s
    record = replace(RECORD, published_at_s=at_s, expires_at_s=at_s + good_s)
    assert complaint in refused(certs, sealed(record, security(certs, COORDINATOR)))


def test_a_certificate_that_has_expired_signs_nothing(certs: Path) -> None:
    later_s = NOW_S + 40 * 86_400.0
    record = replace(RECORD, published_at_s=later_s, expires_at_s=later_s + 60)
    assert "a certificate that has expired" in refused(certs, sealed(record, security(certs, COORDINATOR)), later_s)


def test_the_newest_counts_and_what_is_wrong_is_passed_over(certs: Path) -> None:
    coordinator, a = security(certs, COORDINATOR), security(certs, "a")
    moved = replace(RECORD, address="192.0.2.2:7000", published_at_s=NOW_S + 1)
    sealed_records = [
        sealed(moved, coordinator),
        sealed(RECORD, coordinator),
        sealed(replace(RECORD, published_at_s=NOW_S + 5), Loopback()),
        sealed(replace(RECORD, member="a"), a),
        b"\xff\xff",
        b"x" * 20_000,
    ]
    found, complaints = newest(sealed_records, RUN, a)
    assert found == {COORDINATOR: moved, "a": replace(RECORD, member="a")}
    assert len(complaints) == 3


@given(st.binary(max_size=400))
def test_whatever_lies_in_the_table_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(BadRecord):
        opened(content, RUN, Loopback())
