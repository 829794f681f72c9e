"""What a member shows of itself: its certificate and key as they are on the disk now, checked, as gRPC wants them.

The files may be replaced while the run goes on. A server looks at them whenever somebody connects, a client whenever
it opens a channel; half-replaced or broken ones are left alone, and what was read before goes on being used.
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from comms.certificates import AUTHORITY, CertificateError, dns_name

_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Keys:
    """A member's certificate and key and the authority's certificate, PEM."""

    authority: bytes
    certificate: bytes
    key: bytes
    expires: datetime.datetime

    def __repr__(self) -> str:
        """Without the key: this may end up in a log."""
        return f"Keys(expires={self.expires:%Y-%m-%d})"


def read_keys(directory: Path, member: str, now: datetime.datetime | None = None) -> Keys:
    """What `member` shows of itself; CertificateError when others would not believe it."""
    now = now or datetime.datetime.now(datetime.UTC)
    authority, certificate, key = (_read(path) for path in _files(directory, member))
    where = directory / f"{member}.pem"
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        authorities = x509.load_pem_x509_certificates(authority)
        public_key = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{where}, its key or {AUTHORITY}.pem is no PEM file of its kind: {error}") from None
    if public_key != parsed.public_key():
        raise CertificateError(f"{where} does not belong to {member}.key beside it; issue both again")
    if not any(has_issued(each, parsed) for each in authorities):
        raise CertificateError(f"{where} was not issued by {AUTHORITY}.pem beside it; copy both from one place")
    if not parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc:
        raise CertificateError(
            f"{where} is valid from {parsed.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{parsed.not_valid_after_utc:%Y-%m-%d %H:%M} UTC and it is {now:%Y-%m-%d %H:%M}: "
            "renew it with dist-train certs, or set the clock"
        )
    if names_in(parsed) != [dns_name(member)]:
        raise CertificateError(f"{where} names {names_in(parsed)}, not {member}")
    return Keys(authority, certificate, key, parsed.not_valid_after_utc)


class KeyFiles:
    """The files of one member, and whether they have changed since they were taken."""

    def __init__(self, directory: Path, member: str) -> None:
        """Takes what is there; CertificateError when that is not usable."""
        self._directory, self._member = directory, member
        self._stamp = self._look()
        self.keys = read_keys(directory, member)

    def renewed(self) -> Keys | None:
        """The new keys, once, after the files have been replaced; else None. Never raises."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            keys = read_keys(self._directory, self._member)
        except CertificateError as error:
            _log.debug("the certificate in use stays in use: %s", error)
            return None
        self._stamp, self.keys = stamp, keys
        _log.info("the certificate of %s was renewed; it expires on %s", self._member, f"{keys.expires:%Y-%m-%d}")
        return keys

    def _look(self) -> _Stamp:
        try:
            found = [path.stat() for path in _files(self._directory, self._member)]
        except OSError as error:
            raise _unreadable(error) from None
        return tuple((status.st_mtime_ns, status.st_ino, status.st_size) for status in found)


def channel_credentials(keys: Keys) -> grpc.ChannelCredentials:
    """For a client that shows its certificate and trusts nobody but the run's authority."""
    return grpc.ssl_channel_credentials(keys.authority, keys.key, keys.certificate)


def server_credentials(files: KeyFiles) -> grpc.ServerCredentials:
    """For a server that wants a certificate of everybody, and shows each newcomer the files as they are then."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        keys = files.renewed()
        return None if keys is None else _server_configuration(keys)

    # None means "no change" to gRPC, which its type stubs do not know.
    return grpc.dynamic_ssl_server_credentials(_server_configuration(files.keys), fetch, True)  # type: ignore[arg-type]


def _server_configuration(keys: Keys) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(keys.key, keys.certificate)], keys.authority)


def _files(directory: Path, member: str) -> tuple[Path, Path, Path]:
    return directory / f"{AUTHORITY}.pem", directory / f"{member}.pem", directory / f"{member}.key"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> CertificateError:
    return CertificateError(f"{error.filename}: {error.strerror}; make it with dist-train certs, or copy it here")


def has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether the authority has signed the certificate, which may be anybody's."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names_in(certificate: x509.Certificate) -> list[str]:
    """The DNS names that a certificate is for."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)
