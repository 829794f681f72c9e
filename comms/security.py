"""Who may talk to whom, as one value that says all of it: every channel and every server is opened with one.

Loopback     plain text that never leaves this machine; trusts everybody who has an account on it
Insecure     plain text wherever it goes: somebody has said so
Tls          both ends show a certificate of the run's own authority, and who joins knows the run's token
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Loopback:
    """Plain text, on this machine only."""


@dataclass(frozen=True)
class Insecure:
    """Plain text, to any machine."""


@dataclass(frozen=True)
class Tls:
    """Mutual TLS, as `member` of `run`."""

    run: str
    member: str
    certificates: Path
    """The folder of the member's certificate and key, and of the authority's certificate: see comms.certificates."""
    token: Path
    """The file of the run's join token."""


Security = Loopback | Insecure | Tls
