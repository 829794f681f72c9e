"""`dist-train bootstrap`: a DHT node that keeps running, so that others have somewhere to begin."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from comms.dht import DhtNode, DhtSettings
from comms.multiaddress import NOWHERE, listen_host, peer_of
from dist_train.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

GREET_EVERY_S = 30.0


def serve(listen: str, identity: Path, peers: Sequence[str], say: Callable[[str], None]) -> None:
    """Runs the node until SIGINT or SIGTERM, and says where it is. ConfigError, Unreachable or NoHivemind."""
    try:
        listen_host(listen)
        for peer in peers:
            peer_of(peer)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if listen == NOWHERE:
        raise ConfigError("a bootstrap peer must listen somewhere: --listen /ip4/0.0.0.0/tcp/7100")
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there are threads, so that all of them leave it to us
    node = DhtNode(DhtSettings(tuple(peers), listen, identity))
    try:
        for address in node.addresses:
            say(address)
        while signal.sigtimedwait(ends, GREET_EVERY_S) is None:
            node.greet()
    finally:
        node.close()
