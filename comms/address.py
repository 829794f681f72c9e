"""Where a peer listens, as people and peers write it: `host:port`. Needs no gRPC, so that a config can be checked."""

from __future__ import annotations

import ipaddress

from comms.errors import CommsError

MOST_PORT = 65_535


class BadAddress(CommsError, ValueError):
    """A text that should be `host:port` is something else."""


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of `host:port`, an IPv6 host without its brackets; BadAddress names what does not parse."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > MOST_PORT:
        raise BadAddress(f"address {address!r} is not of the form host:port, such as 192.0.2.10:7000")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
