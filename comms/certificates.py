"""A private certificate authority for one run: who a member is, is what its certificate says.

    DIR/ca.pem, ca.key           the authority; its key signs members and is needed nowhere else
    DIR/<member>.pem, .key       one of each for the coordinator, for every replica, and for the operator
    DIR/run.token                a secret that every member must know to join, beside its certificate

A member's name stands in its certificate as the DNS name `<member>.dist-train.internal`; peers are known by it, not by
the address at which they happen to be. All keys are ECDSA P-256; private files are readable by their owner alone.
"""

from __future__ import annotations

import datetime
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from comms.errors import CommsError

DOMAIN = "dist-train.internal"
AUTHORITY = "ca"
OPERATOR = "operator"
"""The name in the certificate of the person who may stop the run."""
TOKEN_FILE = "run.token"
_CLOCK_SKEW = datetime.timedelta(hours=1)
_AUTHORITY_DAYS = 3650
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class CertificateError(CommsError):
    """A certificate cannot be made, read or trusted. One line."""


def dns_name(member: str) -> str:
    """What a member's certificate says of it."""
    return f"{member}.{DOMAIN}"


def member_name(name: str) -> str | None:
    """The member that a certificate's DNS name stands for; None for a name of somebody else's making."""
    return name.removesuffix(f".{DOMAIN}") if name.endswith(f".{DOMAIN}") else None


def issue(directory: Path, members: Iterable[str], days: int, now: datetime.datetime | None = None) -> list[str]:
    """Makes the authority and the token where they are missing, and a new certificate for each of `members`.

    Returns the names of the files that were written. Issuing again renews: running members take the new files up
    with their next connection. CertificateError when the authority's key is missing or unreadable.
    """
    if days < 1:
        raise CertificateError(f"a certificate for {days} days is none; give at least 1")
    members = list(members)
    if unfit := [member for member in members if not _MEMBER.fullmatch(member) or member == AUTHORITY]:
        raise CertificateError(f"{unfit[0]!r} can be no member's name: use letters, digits, '-', '_' and '.'")
    now = now or datetime.datetime.now(datetime.UTC)
    directory.mkdir(parents=True, exist_ok=True)
    written = list[str]()
    if not (directory / f"{AUTHORITY}.pem").exists():
        _make_authority(directory, now)
        written += [f"{AUTHORITY}.pem", f"{AUTHORITY}.key"]
    if not (directory / TOKEN_FILE).exists():
        _write(directory / TOKEN_FILE, f"{secrets.token_hex(32)}\n".encode(), private=True)
        written.append(TOKEN_FILE)
    authority, key = _load_authority(directory)
    for member in members:
        _write_pair(directory, member, *_new_member(member, days, authority, key, now))
        written += [f"{member}.pem", f"{member}.key"]
    return written


def _make_authority(directory: Path, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dist-train authority {secrets.token_hex(4)}")])
    certificate = (
        _builder(name, name, key.public_key(), _AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(directory, AUTHORITY, certificate, key)


def _new_member(
    member: str,
    days: int,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, member)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(name, authority.subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name(member))]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / f"{AUTHORITY}.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / f"{AUTHORITY}.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise CertificateError(
            f"{directory} holds no usable authority ({error}); issue where its key is kept"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{directory}/{AUTHORITY}.key is no ECDSA key; remove it to begin anew")
    return certificate, key


def _write_pair(directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(directory / f"{name}.key", pem, private=True)
    _write(directory / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), private=False)


def _write(path: Path, content: bytes, *, private: bool) -> None:
    """Replaces `path` at once, so that a member that reads it meanwhile never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
