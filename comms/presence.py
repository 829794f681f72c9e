"""Who is there, by the coordinator's word: one question for all who want to know at about the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc

from comms import wire
from comms.agreement import Holder
from protos import round_pb2 as pb

Present = tuple[Holder, ...] | None
"""Who serves payloads now; None when the coordinator did not say."""


class Presence:
    """The coordinator's newest answer. For one event loop."""

    def __init__(self, ask: Callable[[], Awaitable[pb.StatusReply]], fresh_s: float) -> None:
        """`ask` is the question; its answer counts for `fresh_s`: members are not heard of more often."""
        self._ask = ask
        self._fresh_s = fresh_s
        self._asking: asyncio.Task[Present] | None = None
        self._asked_s = 0.0

    async def holders(self) -> Present:
        """Who serves payloads. Takes as long as the question, which whoever asks first asks for those after it."""
        now_s = time.monotonic()
        if self._asking is None or (self._asking.done() and now_s - self._asked_s >= self._fresh_s):
            self._asking, self._asked_s = asyncio.create_task(self._answer()), now_s
        return await asyncio.shield(self._asking)  # whoever asked first may go; the others still wait

    async def _answer(self) -> Present:
        try:
            status = await self._ask()
        except grpc.aio.AioRpcError:
            return None
        members = [member for member in status.members if member.address and member.state != "away"]
        return tuple(
            Holder(wire.name(member.replica, "status.replica"), address)
            for member in members
            for address in (member.address, *member.rank_addresses)
        )
