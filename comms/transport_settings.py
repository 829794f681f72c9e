"""How one replica is to reach the others: what a real transport is made with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from comms.security import Security

Route = Literal["direct", "relay"]
"""Whether replicas serve their own payloads, or put them at the coordinator."""


@dataclass(frozen=True)
class TransportSettings:
    """One replica's; see [exchange] and [security] of the config."""

    replica: str
    coordinator_address: str
    route: Route
    security: Security
    heartbeat_s: float
    fetch_deadline_s: float
    outage_deadline_s: float
    whereabouts: Callable[[], str | None] | None = None
    """Says where the coordinator is now, as far as that is known; may take seconds. None: it does not move."""
    liveness_deadline_s: float = 15.0
