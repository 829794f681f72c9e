"""Gets a snapshot from all who hold it at once, part by part, into a file.

Every holder has a worker that takes the next part from one queue; a part whose holder fails goes back there, with what
came of it, for another. Parts that have come are kept in the payload store until the file is whole, so that a process
that dies in between goes on where it was.

    give up:  no part for `patience_s`, or every holder has failed MOST_FAILURES times in a row
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from comms import failpoints
from comms.agreement import Holder, SnapshotSource
from comms.errors import CommsError, DeadlineError
from comms.payloads import Parcel, PayloadClient
from comms.snapshots import MOST_INDEX_BYTES, Part, decode_index
from comms.store import PayloadStore

MOST_FAILURES = 3
_RETRY_S = 0.25
_log = logging.getLogger(__name__)


@dataclass
class SnapshotFetch:
    """One transfer, of one snapshot, to one file."""

    source: SnapshotSource
    replica: str
    """Who fetches."""
    store: PayloadStore
    client_to: Callable[[Holder], PayloadClient]
    patience_s: float
    most_bytes: int

    async def into(self, path: Path) -> None:
        """Writes the snapshot to `path`. CommsError when nobody gives it, or when it is none."""
        offer = self.source.offer
        if not 0 < offer.index_bytes <= MOST_INDEX_BYTES:
            raise CommsError(f"the snapshot of round {offer.round} has an index of {offer.index_bytes} bytes")
        index = await self._all([Part(offer.index_digest, offer.index_bytes, 0)])
        parts = decode_index(index[offer.index_digest], self.most_bytes)
        await self._all(list(parts))
        with path.open("wb") as file:
            for part in parts:
                file.write(self.store.get(part.digest) or b"")
        for part in (Part(offer.index_digest, 0, 0), *parts):
            self.store.forget(part.digest)

    async def _all(self, parts: list[Part]) -> dict[str, bytes]:
        """Fetches parts that the store lacks from all holders at once; the small ones' contents."""
        waiting = {part.digest: (part, bytearray()) for part in parts if self.store.get(part.digest) is None}
        under_way = set[str]()
        arrived = asyncio.Event()
        workers = [asyncio.create_task(self._work(h, waiting, under_way, arrived)) for h in self.source.holders]
        try:
            while waiting:
                arrived.clear()
                if not any(not worker.done() for worker in workers):
                    raise CommsError(f"nobody gives {len(waiting)} parts of the snapshot of round {self._round}")
                try:
                    async with asyncio.timeout(self.patience_s):
                        await arrived.wait()
                except TimeoutError:
                    raise DeadlineError(
                        f"no part of the snapshot came from {', '.join(h.replica for h in self.source.holders)}",
                        "catch-up", "outage_deadline_s", self.patience_s, self._round,
                    ) from None  # fmt: skip
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return {part.digest: self.store.get(part.digest) or b"" for part in parts[:1]}

    async def _work(
        self,
        holder: Holder,
        waiting: dict[str, tuple[Part, bytearray]],
        under_way: set[str],
        arrived: asyncio.Event,
    ) -> None:
        """Takes one part after the other from a holder, until nothing waits or the holder is of no use."""
        failures = 0
        try:
            while waiting and failures < MOST_FAILURES:
                free = next((digest for digest in waiting if digest not in under_way), None)
                if free is None:  # the rest is on its way from others, who may yet fail
                    await asyncio.sleep(_RETRY_S)
                    continue
                under_way.add(free)
                try:
                    await self._get(holder, *waiting[free])
                except (grpc.aio.AioRpcError, CommsError) as error:
                    failures += 1
                    _log.info("%s does not give a part of the snapshot: %s", holder.replica, error)
                    await asyncio.sleep(_RETRY_S)
                else:
                    failures = 0
                    del waiting[free]
                    failpoints.reach("during-snapshot-transfer", self._round)
                finally:
                    under_way.discard(free)
                    arrived.set()
        finally:
            arrived.set()

    async def _get(self, holder: Holder, part: Part, received: bytearray) -> None:
        parcel = Parcel(part.digest, part.num_bytes, self._round, self.replica, "state_transfer")
        await self.client_to(holder).get(parcel, received, self.patience_s)
        self.store.put(bytes(received))

    @property
    def _round(self) -> int:
        return self.source.offer.round
