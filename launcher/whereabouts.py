"""What a person types for a run: HOST:PORT, or the run's name and a peer of the DHT that knows where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comms.multiaddress import ANY_PORT, LOOPBACK_PORT, all_loopback, peer_of
from dist_train.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comms.security import Security

FIND_DEADLINE_S = 30.0


@dataclass(frozen=True)
class NamedRun:
    """A run that is looked for by its name."""

    run: str
    bootstrap: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        """Whether all bootstrap peers are on this machine."""
        return all_loopback(self.bootstrap, None)

    def locate(self, security: Security) -> str:
        """HOST:PORT of its coordinator; blocks. Unreachable when nobody knows it, NoHivemind."""
        from comms.dht import DhtSettings  # only who looks for a run by name needs it
        from comms.discovery import locate

        settings = DhtSettings(self.bootstrap, LOOPBACK_PORT if self.is_here else ANY_PORT)
        return locate(self.run, security, settings, FIND_DEADLINE_S)


def named_run(text: str, bootstrap: Sequence[str]) -> NamedRun | None:
    """The run that `NAME@PEER[,PEER...]`, or NAME with `bootstrap`, speaks of; None for a HOST:PORT. ConfigError."""
    name, at, peers = text.partition("@")
    every = (*bootstrap, *(peers.split(",") if at else ()))
    if not every:
        return None
    if not name or ":" in name:
        raise ConfigError(f"{text}: with a bootstrap peer, give the run's name, not an address")
    try:
        for peer in every:
            peer_of(peer)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return NamedRun(name, every)
