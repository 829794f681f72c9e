"""What replicas may put at a peer that relays: payloads of the round now open, each replica within its quota.

    stored + announced <= most_bytes           else TooLarge: trying again won't help
    under way + announced <= 2 most_bytes      else Busy: an upload whose stream broke may linger while it is repeated

Bytes are written to the disk as they come, so what is announced costs nothing, and what has come costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from comms.errors import Busy, StaleRound, TooLarge, WrongName

_LEAST_CHARGE_BYTES = 4096
"""A file takes up some space however short it is."""


@dataclass
class _Account:
    """One replica's uploads for the round that is open."""

    round: int
    stored: dict[str, int] = field(default_factory=dict)
    """By digest: bytes charged."""
    under_way_bytes: int = 0


class Uploads:
    """The quotas of one relay."""

    def __init__(self, replicas: Callable[[], Collection[str]], most_bytes: int, open_round: Callable[[], int]) -> None:
        self._replicas = replicas
        self._most_bytes = most_bytes
        self._open_round = open_round
        self._accounts: dict[str, _Account] = {}

    @contextmanager
    def admitted(self, replica: str, round_number: int, digest: str, num_bytes: int) -> Iterator[None]:
        """Lets an upload in for as long as it takes, and charges it if it ends well. AccessError says why not."""
        account = self._account(replica, round_number)
        charge = max(num_bytes, _LEAST_CHARGE_BYTES)
        stored_bytes = sum(account.stored.values()) - account.stored.get(digest, 0)
        if stored_bytes + charge > self._most_bytes:
            raise TooLarge(
                f"replica {replica!r} would come to {stored_bytes + charge} payload bytes in round {round_number}, and "
                f"exchange.most_payload_bytes = {self._most_bytes}: raise it if the model needs that"
            )
        if account.under_way_bytes + charge > 2 * self._most_bytes:
            raise Busy(f"replica {replica!r} has {account.under_way_bytes} bytes under way already")
        account.under_way_bytes += charge
        try:
            yield
            account.stored[digest] = charge
        finally:
            account.under_way_bytes -= charge

    def _account(self, replica: str, round_number: int) -> _Account:
        if replica not in (replicas := self._replicas()):
            raise WrongName(f"{replica!r} is none of this run's replicas ({', '.join(sorted(replicas))})")
        if round_number != (open_round := self._open_round()):
            raise StaleRound(f"the payload is of round {round_number}; round {open_round} is open")
        account = self._accounts.get(replica)
        if account is None or account.round != round_number:
            account = self._accounts[replica] = _Account(round_number)
        return account
