"""Everything that can go wrong between peers.

    CommsError
    ├── Refused          the coordinator won't have this replica; trying again won't help
    ├── Unreachable      nobody answers at an address
    ├── DeadlineError    a wait came to its bound; names the peer, the phase and the config key
    ├── RunFailed        the run ended early, for everybody
    └── JournalError     the coordinator's journal belongs to another run, or cannot be written

Each message is one line for a person: what, the rule, the remedy.
"""

from __future__ import annotations


class CommsError(Exception):
    """A peer, a link or the agreement between peers failed. The message is one line."""


class Refused(CommsError):  # noqa: N818 - what happened, not what kind of error
    """The coordinator won't have this replica, and says why."""


class Unreachable(CommsError):  # noqa: N818
    """Nobody answers at an address, or nobody may listen there."""


class DeadlineError(CommsError):
    """A wait came to its bound."""

    def __init__(self, what: str, phase: str, key: str, deadline_s: float, round_number: int) -> None:
        super().__init__(
            f"{what} within {deadline_s:g} s (round {round_number}, {phase}). "
            f"Is it up and reachable? Raise exchange.{key} if it is only slow."
        )


class RunFailed(CommsError):  # noqa: N818
    """The run ended before its last round, for every replica."""


class JournalError(CommsError):
    """The coordinator's journal cannot be used."""
