"""Everything that can go wrong between peers.

    CommsError
    ├── Refused          the coordinator won't have this replica; trying again won't help
    ├── Unreachable      nobody answers at an address
    ├── BadAddress       a text that should be host:port (comms.address)
    ├── DeadlineError    a wait came to its bound; names the peer, the phase and the config key
    ├── RunFailed        the run ended early, for everybody
    ├── JournalError     the coordinator's journal belongs to another run, or cannot be written
    ├── RankLost         another rank of this replica is gone, or has not done its part in time
    └── AccessError      a caller asks for more than it may; it is told the error's name
        ├── WrongName        its certificate is another member's
        ├── NotTheOperator   only the operator may do this
        ├── BadProof         it does not know the join token, or shows an old proof
        ├── StaleRound       its payload is of a round that is not open
        ├── StaleGroup       it speaks of another group of ranks, or of an earlier forming of this one
        ├── TooLarge         its payloads are larger than this run takes
        ├── TooSlow          its stream crawls
        ├── Busy             it does too much at once
        └── WrongDigest      its payload is not what its digest says

Each message is one line for a person: what, the rule, the remedy.
"""

from __future__ import annotations


class CommsError(Exception):
    """A peer, a link or the agreement between peers failed. The message is one line."""


class Refused(CommsError):
    """The coordinator won't have this replica, and says why."""


class Unreachable(CommsError):
    """Nobody answers at an address, or nobody may listen there."""


class DeadlineError(CommsError):
    """A wait came to its bound."""

    def __init__(self, what: str, phase: str, key: str, deadline_s: float, round_number: int) -> None:
        super().__init__(
            f"{what} within {deadline_s:g} s (round {round_number}, {phase}). "
            f"Is it up and reachable? Raise exchange.{key} if it is only slow."
        )


class RunFailed(CommsError):
    """The run ended before its last round, for every replica."""


class JournalError(CommsError):
    """The coordinator's journal cannot be used."""


class RankLost(CommsError):
    """Another rank of this replica is gone, or has not done its part in time; names rank, phase and config key."""


class AccessError(CommsError):
    """A caller asks for more than it may. Where it is refused over the network it is told the name of the kind."""


class WrongName(AccessError):
    """The caller's certificate does not say what the caller says of itself."""


class NotTheOperator(AccessError):
    """Only the operator of a run may do this."""


class BadProof(AccessError):
    """The caller has not shown that it knows the join token now."""


class StaleRound(AccessError):
    """A payload is of a round that is not open."""


class StaleGroup(AccessError):
    """The caller belongs to another group of ranks than this one, or to an earlier forming of it."""


class TooLarge(AccessError):
    """A payload, or all of a replica's payloads of a round together, are more than the run takes."""


class TooSlow(AccessError):
    """A stream moves so slowly that it only holds on to memory."""


class Busy(AccessError):
    """The caller does more at once than one caller may; later it can be had."""


class WrongDigest(AccessError):
    """A payload is not what its digest says."""
