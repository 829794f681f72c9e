"""Where nodes of the DHT are, as libp2p writes it: what a person may type, checked before anything is started.

/ip4/192.0.2.1/tcp/7100/p2p/QmVW...     a bootstrap peer: host, port, and the digest of its key
/ip4/0.0.0.0/tcp/7100                   a place to listen at
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

ANY_PORT = "/ip4/0.0.0.0/tcp/0"
LOOPBACK_PORT = "/ip4/127.0.0.1/tcp/0"
NOWHERE = "none"
"""In place of an address to listen at: this node only dials out, and keeps nothing for others."""
_PEER = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d{1,5})/p2p/([A-Za-z0-9]+)")
_LISTEN = re.compile(r"/(ip4|ip6)/([^/]+)/tcp/(\d{1,5})")


@dataclass(frozen=True)
class Peer:
    """A bootstrap peer."""

    host: str
    port: int
    id: str


def peer_of(address: str) -> Peer:
    """The parts of a bootstrap peer's address; ValueError for what is none."""
    found = _PEER.fullmatch(address)
    if found is None or int(found[3]) > 65_535:
        raise ValueError(
            f'"{address}" is no bootstrap peer; one is like /ip4/192.0.2.1/tcp/7100/p2p/QmVW..., as '
            "dist-train bootstrap prints it"
        )
    return Peer(found[2], int(found[3]), found[4])


def listen_host(address: str) -> str:
    """The host of an address to listen at, "" for "none"; ValueError for what is none."""
    if address == NOWHERE:
        return ""
    found = _LISTEN.fullmatch(address)
    if found is None or int(found[3]) > 65_535:
        raise ValueError(f'"{address}" is nowhere to listen at; say /ip4/0.0.0.0/tcp/7100, or "{NOWHERE}"')
    return str(ipaddress.ip_address(found[2]))


def all_loopback(peers: Iterable[str], listen: str | None) -> bool:
    """Whether these peers, and where to listen, are all on this machine."""
    hosts = [peer_of(peer).host for peer in peers] + ([listen_host(listen)] if listen else [])
    return all(host in ("", "localhost", "::1") or host.startswith("127.") for host in hosts)
