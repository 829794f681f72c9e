"""Gets the payloads of a manifest, each from whoever gives it first.

Every owner's payloads are fetched two at once. One is asked for at its owner, then at the others; what came before a
stream broke stays, and goes on at the next source. When nobody gives it the coordinator is asked who is there now.

    give up:  at `deadline_s`; or, of what is only proposed, as soon as nobody who is there can have it
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Container, Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc

from comms.agreement import COORDINATOR, Entry, Holder, Manifest, Problem
from comms.errors import CommsError
from comms.payloads import FETCHES_AT_ONCE, Parcel
from comms.peers import Peers
from comms.store import PayloadStore
from comms.transport import Arrival

_RETRY_S = 0.25
_PATIENCE = 0.8
"""Of fetch_deadline_s: what is proposed is given up before the coordinator gives us up."""


def _is_lost(owner: str, sources: Sequence[Holder], empty: Container[str]) -> bool:
    """Whether nobody can give an owner's payload: it is not among those who are there, and they don't hold it."""
    there = {source.replica for source in sources}
    return owner not in there and all(replica in empty for replica in there)


@dataclass
class _Wanted:
    """A payload that is looked for."""

    entry: Entry
    parcel: Parcel
    received: bytearray = field(default_factory=bytearray)
    why: str = "nobody who is there holds it"
    """What stood in the way last."""
    empty: set[str] = field(default_factory=set)
    """Who does not hold it, of those that were asked in this turn."""


class PayloadFetch:
    """One fetch of one round. Made when it begins."""

    def __init__(
        self, peers: Peers, store: PayloadStore, round_number: int, holders: Sequence[Holder], *, committed: bool
    ) -> None:
        """`holders`: who was there when the manifest was made; `committed`: whether it must be had."""
        settings = peers.settings
        self._peers = peers
        self._store = store
        self._round = round_number
        self._holders = holders
        self._committed = committed
        self._patience_s = settings.outage_deadline_s if committed else _PATIENCE * settings.fetch_deadline_s
        self._deadline_s = time.monotonic() + self._patience_s

    async def arrivals(self, manifest: Manifest) -> AsyncGenerator[Arrival, None]:
        """Each payload once, as they arrive, or why it can't be had."""
        turns = defaultdict[str, asyncio.Semaphore](partial(asyncio.Semaphore, FETCHES_AT_ONCE))
        fetches = [asyncio.create_task(self._arrival(entry, turns[entry.replica])) for entry in manifest]
        try:
            for fetch in asyncio.as_completed(fetches):
                yield await fetch
        finally:
            for task in fetches:
                task.cancel()

    async def _arrival(self, entry: Entry, turn: asyncio.Semaphore) -> Arrival:
        """One payload, when it is its turn: while one asks and is checked, another keeps the link busy."""
        async with turn:
            try:
                return Arrival(entry, await self._content(entry))
            except Exception as error:  # noqa: BLE001 - whatever it was, it is this payload's problem
                return Arrival(entry, Problem(entry.digest, f"{entry.fragment} of {entry.replica}: {error!r}"))

    async def _content(self, entry: Entry) -> bytes | Problem:
        """A payload from the first source that gives it; a stream that broke goes on elsewhere where it stopped."""
        replica = self._peers.settings.replica
        wanted = _Wanted(entry, Parcel(entry.digest, entry.num_bytes, self._round, replica, fragment=entry.fragment))
        sources = self._sources(entry.replica, self._holders)
        while not await self._is_given(wanted, sources):
            present = await self._peers.presence.holders()
            there = None if present is None else self._sources(entry.replica, present)
            lost = there is not None and _is_lost(entry.replica, there, wanted.empty)
            if time.monotonic() + _RETRY_S >= self._deadline_s or (lost and not self._committed):
                return Problem(
                    entry.digest,
                    f"no payload {entry.fragment} of replica {entry.replica} in {self._patience_s:g} s ({wanted.why})",
                )
            await asyncio.sleep(_RETRY_S)
            sources = sources if there is None else there
        payload = bytes(wanted.received)
        self._store.put(payload)
        return payload

    async def _is_given(self, wanted: _Wanted, sources: Sequence[Holder]) -> bool:
        """Asks one source after the other; whether the payload is whole now."""
        wanted.empty.clear()
        for source in sources:
            if time.monotonic() >= self._deadline_s:
                break
            try:
                await self._get(source, wanted)
            except grpc.aio.AioRpcError as error:
                wanted.why = f"{source.replica} at {source.address}: {error.details() or error.code().name}"
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    wanted.empty.add(source.replica)
            except CommsError as error:
                wanted.why = str(error)
            else:
                return True
        return False

    async def _get(self, source: Holder, wanted: _Wanted) -> None:
        """Takes the rest of a payload; CommsError when it stands still because its source is away."""
        remaining_s = self._deadline_s - time.monotonic()
        client, received = self._peers.payloads_at(source), wanted.received
        getting = asyncio.create_task(client.get(wanted.parcel, received, remaining_s))
        try:
            while True:
                before = len(received)
                done, _ = await asyncio.wait({getting}, timeout=2 * self._peers.settings.heartbeat_s)
                if done:
                    return getting.result()
                if len(received) == before and await self._is_away(source):
                    raise CommsError(f"{source.replica} at {source.address}: it is away, and sends nothing")
        finally:
            getting.cancel()

    async def _is_away(self, source: Holder) -> bool:
        present = await self._peers.presence.holders()
        return present is not None and source.replica not in {COORDINATOR, *(one.replica for one in present)}

    def _sources(self, owner: str, holders: Sequence[Holder]) -> list[Holder]:
        """Who may have an owner's payloads: itself, then the others; under "relay" the coordinator alone."""
        if self._peers.settings.route == "relay":
            return [self._peers.coordinator]
        others = [holder for holder in holders if holder.replica not in (owner, self._peers.settings.replica)]
        return [holder for holder in holders if holder.replica == owner] + others
