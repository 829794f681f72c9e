"""Members of a run find each other by the run's name: each keeps its signed record alive in a DHT, and reads others'.

A discovery works from a thread of its own, and never ends a run: what can't be reached is tried again, and said once.

    every third of a record's lifetime: store the own record again, greet the bootstrap peers
    find, members: read the DHT now
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Self

from comms.agreement import COORDINATOR
from comms.dht import DhtNode, DhtSettings, import_hivemind
from comms.errors import CommsError, Unreachable
from comms.record import Record, newest, sealed
from comms.security import Security

_RETRY_S, _MOST_RETRY_S = 0.5, 10.0
_log = logging.getLogger(__name__)


class Discovery:
    """One member's part in it. Joins the DHT in the background; see `is_up`."""

    def __init__(self, run: str, member: str, security: Security, settings: DhtSettings, lifetime_s: float) -> None:
        """NoHivemind when it is not installed here."""
        import_hivemind()  # here: two threads that import torch at once wait for each other
        self._run, self._member, self._security = run, member, security
        self._settings, self._lifetime_s = settings, lifetime_s
        self._address = ""
        self._node: DhtNode | None = None
        self._said = ""
        self._closing = False
        self._wake = threading.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="discovery", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def announce(self, address: str) -> None:
        """From now on others find this member at host:port `address`."""
        self._address = address
        self._wake.set()

    def is_up(self, patience_s: float) -> bool:
        """Waits until this member is in the DHT; False when it is not by then."""
        return self._up.wait(patience_s)

    @property
    def addresses(self) -> list[str]:
        """Multiaddresses from which others can bootstrap; none before it is up."""
        return [] if self._node is None else self._node.addresses

    def members(self) -> dict[str, Record]:
        """The last good record of each member, by name; none while nobody can be asked."""
        if self._node is None:
            return {}
        found, complaints = newest(self._node.values(_key(self._run)), self._run, self._security)
        for complaint in complaints:
            self._say(f"passed over: {complaint}")
        return found

    def find(self, member: str, patience_s: float) -> str | None:
        """Where `member` is; None when nobody has said so within `patience_s`."""
        give_up_s = time.monotonic() + patience_s
        if self._up.wait(patience_s):
            while (record := self.members().get(member)) is None and time.monotonic() + _RETRY_S < give_up_s:
                time.sleep(_RETRY_S)
            return record.address if record is not None else None
        return None

    @property
    def last_words(self) -> str:
        """What went wrong last; empty when nothing did."""
        return self._said

    def close(self) -> None:
        """Leaves the DHT; the record lives on until it expires."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _keep(self) -> None:
        pause_s = _RETRY_S
        while not self._closing:
            self._wake.clear()
            try:
                self._renew()
            except CommsError as error:
                self._say(str(error))
                pause_s = min(2 * pause_s, _MOST_RETRY_S)
            else:
                pause_s = self._lifetime_s / 3
            self._wake.wait(min(pause_s, self._lifetime_s / 3))
        if self._node is not None:
            self._node.close()

    def _renew(self) -> None:
        if self._node is None:
            self._node = DhtNode(self._settings)
            self._up.set()
        if self._address:
            now_s = time.time()
            record = Record(self._run, self._member, self._address, now_s, now_s + self._lifetime_s)
            if not self._node.store(_key(self._run), sealed(record, self._security), record.expires_at_s):
                raise Unreachable(f"no node of the DHT takes the address of {self._member}")
        self._node.greet()  # a bootstrap peer that was gone is known again

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            _log.warning("discovery: %s", what)


def locate(run: str, security: Security, settings: DhtSettings, patience_s: float) -> str:
    """Where the coordinator of `run` is; blocks. Unreachable when nobody says so in time; NoHivemind."""
    with Discovery(run, "", security, settings, lifetime_s=60.0) as discovery:
        address = discovery.find(COORDINATOR, patience_s)
        if address is None:
            why = discovery.last_words or "the bootstrap peers answer, and know no such run"
            raise Unreachable(
                f"no coordinator of a run {run!r} is found within {patience_s:g} s: {why}. "
                "Is its name right, has it the same bootstrap peers, and is it up?"
            )
        return address


def _key(run: str) -> str:
    return f"dist-train/1/{run}"
