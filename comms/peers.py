"""The peers of one replica as it finds them: where the coordinator is now, who is there, and a channel to each."""

from __future__ import annotations

import asyncio
import logging

import grpc

from comms import wire
from comms.agreement import COORDINATOR, CommittedRound, Holder
from comms.channel import Channels
from comms.errors import DeadlineError
from comms.ledger import Ledger
from comms.payloads import PayloadClient
from comms.presence import Presence
from comms.transport_settings import TransportSettings
from protos import round_pb2 as pb
from protos import round_pb2_grpc

_STATUS_DEADLINE_S = 5.0
_log = logging.getLogger(__name__)


class Peers:
    """The coordinator and the other replicas, for one event loop. Everything here is bounded."""

    def __init__(self, settings: TransportSettings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger
        self.coordinator = Holder(COORDINATOR, settings.coordinator_address)
        """Where it was found last."""
        self.presence = Presence(self.status, settings.heartbeat_s)
        self._channels = Channels(settings.security, settings.liveness_deadline_s)

    def channel_to(self, peer: Holder) -> grpc.aio.Channel:
        """The channel to a peer. InsecureAddress when plain text may not go there."""
        return self._channels.to(peer.replica, peer.address)

    def payloads_at(self, peer: Holder) -> PayloadClient:
        """The calls of a peer's payload service."""
        return PayloadClient(self.channel_to(peer), peer.replica, self.ledger)

    def rounds(self) -> round_pb2_grpc.RoundsAsyncStub:
        """The coordinator's calls."""
        return round_pb2_grpc.RoundsStub(self.channel_to(self.coordinator))

    async def status(self, within_s: float = _STATUS_DEADLINE_S) -> pb.StatusReply:
        """What the coordinator says that the run does. grpc.aio.AioRpcError when it does not say it in time."""
        return await self.rounds().Status(pb.StatusRequest(), timeout=within_s)

    async def history(self, after_round: int) -> list[CommittedRound]:
        """The rounds committed after one, oldest first. DeadlineError when the coordinator does not give them."""
        deadline_s, rounds = self.settings.outage_deadline_s, list[CommittedRound]()
        try:
            async for message in self.rounds().History(pb.HistoryRequest(after_round=after_round), timeout=deadline_s):
                self.ledger.control(peer=COORDINATOR, direction="received", num_bytes=message.ByteSize())
                rounds.append(wire.committed_from_pb(message))
        except grpc.aio.AioRpcError:
            raise DeadlineError(
                "the coordinator did not give the history", "catch-up", "outage_deadline_s", deadline_s, after_round
            ) from None
        return rounds

    async def look_for_coordinator(self, within_s: float) -> None:
        """From now on dials where the coordinator is found by name, if that is elsewhere."""
        if self.settings.whereabouts is None:
            return
        try:
            async with asyncio.timeout(within_s):
                found = await asyncio.to_thread(self.settings.whereabouts)
        except TimeoutError:
            return
        if found is not None and found != self.coordinator.address:
            _log.warning("the coordinator has moved from %s to %s", self.coordinator.address, found)
            self.coordinator = Holder(COORDINATOR, found)

    async def close(self) -> None:
        """Ends all calls."""
        await self._channels.close()
