"""Where a member of a run is, as it says so itself: a record that may lie anywhere, and be handed on by anybody.

Under TLS the member signs it with the key of its certificate, and whoever reads it checks the chain

    run's authority -> member's certificate -> signature over (run, member, address, published, expires)

So a record can't be forged, be moved to another run or name, or outlive its time. What strangers can do is hide it, or
show the last but one for as long as that is good; what is found there must still show the member's certificate when it
is dialled. In a run without TLS records are unsigned, like everything else that such a run says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import DecodeError

from comms import wire
from comms.address import BadAddress, host_and_port
from comms.certificates import dns_name
from comms.credentials import has_issued, names_in, read_keys
from comms.errors import CommsError
from comms.security import Security, Tls
from protos import discovery_pb2 as pb

MOST_LIFETIME_S = 3600.0
CLOCK_LEAD_S = 60.0
"""How far ahead of the reader's clock a record may have been published."""
_MOST_RECORD_BYTES = 16_384
_PURPOSE = b"dist-train address 1\n"


class BadRecord(CommsError):
    """A record is not what it should be: unsigned, forged, expired, or somebody else's. One line."""


@dataclass(frozen=True)
class Record:
    """A member's address, for a time."""

    run: str
    member: str
    address: str
    published_at_s: float
    expires_at_s: float


def sealed(record: Record, security: Security) -> bytes:
    """The record as bytes for others, signed under TLS. CertificateError when the member's files are not usable."""
    statement = pb.AddressStatement(
        run=record.run,
        member=record.member,
        address=record.address,
        published_at_s=record.published_at_s,
        expires_at_s=record.expires_at_s,
    ).SerializeToString()
    if not isinstance(security, Tls):
        return pb.AddressRecord(statement=statement).SerializeToString()
    keys = read_keys(security.certificates, security.member)
    key = load_pem_private_key(keys.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadRecord(f"the key of {security.member} is no ECDSA key; issue it again with dist-train certs")
    signature = key.sign(_PURPOSE + statement, ec.ECDSA(hashes.SHA256()))
    return pb.AddressRecord(statement=statement, certificate=keys.certificate, signature=signature).SerializeToString()


def opened(sealed_record: bytes, run: str, security: Security, now_s: float | None = None) -> Record:
    """The record of a member of `run`, checked. BadRecord names what is wrong with it."""
    now_s = time.time() if now_s is None else now_s
    if len(sealed_record) > _MOST_RECORD_BYTES:
        raise BadRecord(f"a record of {len(sealed_record)} bytes; at most {_MOST_RECORD_BYTES} are taken")
    try:
        envelope = pb.AddressRecord.FromString(sealed_record)
        record = _stated(pb.AddressStatement.FromString(envelope.statement))
    except (DecodeError, wire.WireError, BadAddress) as error:
        raise BadRecord(f"a record means nothing: {error}") from None
    if record.run != run:
        raise BadRecord(f"a record is of the run {record.run!r}, not of {run!r}")
    if isinstance(security, Tls):
        authority = read_keys(security.certificates, security.member).authority
        _check_signature(envelope, record.member, authority, now_s)
    _check_times(record, now_s)
    return record


def newest(sealed_records: Iterable[bytes], run: str, security: Security) -> tuple[dict[str, Record], list[str]]:
    """The last record of each member, by its name, and what was wrong with those that were passed over."""
    found, complaints = dict[str, Record](), list[str]()
    for sealed_record in sealed_records:
        try:
            record = opened(sealed_record, run, security)
        except BadRecord as error:
            complaints.append(str(error))
            continue
        known = found.get(record.member)
        if known is None or record.published_at_s > known.published_at_s:
            found[record.member] = record
    return found, complaints


def _stated(statement: pb.AddressStatement) -> Record:
    host_and_port(statement.address)
    return Record(
        run=wire.name(statement.run, "record.run"),
        member=wire.name(statement.member, "record.member"),
        address=wire.text(statement.address),
        published_at_s=statement.published_at_s,
        expires_at_s=statement.expires_at_s,
    )


def _check_times(record: Record, now_s: float) -> None:
    published_s, expires_s = record.published_at_s, record.expires_at_s
    who = f"the record of {record.member}"
    if not (math.isfinite(published_s) and 0 < expires_s - published_s <= MOST_LIFETIME_S):
        raise BadRecord(f"{who} would be good for {expires_s - published_s:.0f} s; at most {MOST_LIFETIME_S:g} s are")
    if now_s >= expires_s:
        raise BadRecord(f"{who} expired {now_s - expires_s:.0f} s ago")
    if published_s - now_s > CLOCK_LEAD_S:
        raise BadRecord(f"{who} is {published_s - now_s:.0f} s ahead of this machine's clock: set one of the two")


def _check_signature(envelope: pb.AddressRecord, member: str, authority: bytes, now_s: float) -> None:
    who = f"the record of {member}"
    if not envelope.signature or not envelope.certificate:
        raise BadRecord(f"{who} is not signed")
    try:
        certificate = x509.load_pem_x509_certificate(envelope.certificate)
        key, names = certificate.public_key(), names_in(certificate)
    except (ValueError, TypeError) as error:
        raise BadRecord(f"{who} bears no certificate: {error}") from None
    if not any(has_issued(each, certificate) for each in x509.load_pem_x509_certificates(authority)):
        raise BadRecord(f"{who} bears a certificate of another authority")
    if names != [dns_name(member)]:
        raise BadRecord(f"{who} bears the certificate of {names}")
    starts_s, ends_s = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not starts_s <= now_s <= ends_s:
        raise BadRecord(f"{who} bears a certificate that has expired")
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise BadRecord(f"{who} bears a certificate whose key is no ECDSA key")
        key.verify(envelope.signature, _PURPOSE + envelope.statement, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise BadRecord(f"the signature of {who} is not that of its certificate") from None
