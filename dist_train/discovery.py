"""How a member of a run is found by its name, as the config says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from comms.address import host_and_port
from comms.agreement import COORDINATOR
from comms.channel import own_host
from comms.dht import DhtSettings
from comms.discovery import Discovery
from comms.multiaddress import ANY_PORT, LOOPBACK_PORT, NOWHERE, peer_of
from comms.security import Security
from dist_train.config import Config

LOOK_S = 5.0
"""How long one look for a coordinator that is gone may take."""
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognised, not listened at


@contextmanager
def discovery_of(config: Config, member: str, security: Security) -> Iterator[Discovery | None]:
    """What `member` is found by, and finds others with, while the `with` block goes on; None when there is none.

    NoHivemind when it is not installed here.
    """
    if not config.discovery.is_on:
        yield None
        return
    settings = dht_settings(config, dials_only=member != COORDINATOR and config.exchange.route == "relay")
    with Discovery(config.run.name, member, security, settings, config.discovery.record_s) as discovery:
        yield discovery


def dht_settings(config: Config, *, dials_only: bool) -> DhtSettings:
    """The part that this machine takes in the DHT."""
    discovery = config.discovery
    anywhere = LOOPBACK_PORT if config.security.mode == "loopback" else ANY_PORT
    listen = discovery.listen or (NOWHERE if dials_only and discovery.bootstrap else anywhere)
    return DhtSettings(discovery.bootstrap, listen)


def advertised(config: Config, bound: str) -> str:
    """Where others reach the coordinator that listens at `bound`, host:port."""
    if config.discovery.advertise is not None:
        return config.discovery.advertise
    host, port = host_and_port(bound)
    if host not in _EVERYWHERE or not config.discovery.bootstrap:
        return bound
    peer = peer_of(config.discovery.bootstrap[0])
    return f"{own_host(f'{peer.host}:{peer.port}')}:{port}"
