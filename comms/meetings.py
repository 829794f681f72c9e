"""Where the ranks of a replica find each other: the coordinator introduces them, once all of them have come.

    rank 0 -- Meet --> |             |
    rank 1 -- Meet --> | coordinator | -- addresses of all, a name for this meeting --> each rank
    rank 2 -- Meet --> |             |

A rank that comes again while others wait takes its earlier place: it was started anew. Nothing of this is kept over a
restart of the coordinator; whoever waited comes again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from comms import wire
from comms.agreement import COORDINATOR
from comms.caller import refuse, require_name
from comms.channel import Channels
from comms.errors import AccessError, Refused, Unreachable
from comms.security import Security
from protos import meeting_pb2 as pb
from protos import meeting_pb2_grpc as pb_grpc

_RETRY_S = 0.5


@dataclass(frozen=True)
class Meeting:
    """What a rank is told: `addresses` by rank, and a name that no earlier meeting had."""

    addresses: tuple[str, ...]
    name: str


@dataclass
class _Gathering:
    """Those who have come so far."""

    ranks: int
    addresses: dict[int, str] = field(default_factory=dict)
    complete: asyncio.Future[Meeting] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class MeetingService(pb_grpc.MeetingsServicer):
    """Introduces the ranks of each replica that `is_known` to each other; waits `deadline_s` for all of them."""

    def __init__(self, is_known: Callable[[str], bool], deadline_s: float) -> None:
        self._is_known = is_known
        self._deadline_s = deadline_s
        self._gatherings: dict[str, _Gathering] = {}

    async def Meet(
        self, request: pb.MeetRequest, context: grpc.aio.ServicerContext[pb.MeetRequest, pb.MeetReply]
    ) -> pb.MeetReply:
        """Waits for the other ranks."""
        try:
            replica, gathering = self._take_place(request, context)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except AccessError as error:
            await refuse(context, error)
        try:
            async with asyncio.timeout(self._deadline_s):
                meeting = await asyncio.shield(gathering.complete)
        except TimeoutError:
            missing = sorted(set(range(gathering.ranks)) - gathering.addresses.keys())
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"rank {', '.join(map(str, missing))} of {replica} did not come"
            )
        finally:
            if not gathering.complete.done() and gathering.addresses.get(request.rank) == request.address:
                del gathering.addresses[request.rank]  # it waits no more
        return pb.MeetReply(addresses=meeting.addresses, meeting=meeting.name)

    def _take_place(
        self, request: pb.MeetRequest, context: grpc.aio.ServicerContext[pb.MeetRequest, pb.MeetReply]
    ) -> tuple[str, _Gathering]:
        replica = wire.name(request.replica, "meet.replica")
        require_name(context, replica)
        if not self._is_known(replica):
            raise wire.WireError(f"meet.replica = {replica!r} is none of this run's replicas")
        if not 0 <= request.rank < request.ranks <= wire.MOST_RANKS:
            raise wire.WireError(f"meet.rank = {request.rank} of {request.ranks} is no rank")
        gathering = self._gatherings.setdefault(replica, _Gathering(request.ranks))
        if gathering.ranks != request.ranks:
            raise wire.WireError(f"rank {request.rank} of {replica} says {request.ranks} ranks, not {gathering.ranks}")
        gathering.addresses[request.rank] = wire.text(request.address)
        if len(gathering.addresses) == gathering.ranks:
            del self._gatherings[replica]
            addresses = tuple(gathering.addresses[rank] for rank in range(gathering.ranks))
            gathering.complete.set_result(Meeting(addresses, secrets.token_hex(8)))
        return replica, gathering


def meet(
    coordinator_address: str,
    security: Security,
    *,
    replica: str,
    rank: int,
    ranks: int,
    address: str,
    patience_s: float,
) -> Meeting:
    """Where the ranks of a replica are; blocks until all have come. Refused, or Unreachable after `patience_s`."""
    request = pb.MeetRequest(replica=replica, rank=rank, ranks=ranks, address=address)
    return asyncio.run(_meet(coordinator_address, security, request, patience_s))


async def _meet(address: str, security: Security, request: pb.MeetRequest, patience_s: float) -> Meeting:
    channels, why = Channels(security), "no answer"
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    reply = await pb_grpc.MeetingsStub(channels.to(COORDINATOR, address)).Meet(request)
                except grpc.aio.AioRpcError as error:
                    why = error.details() or error.code().name
                    if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED):
                        raise Refused(f"rank {request.rank} may not meet the others: {why}") from None
                    await asyncio.sleep(_RETRY_S)
                else:
                    return Meeting(tuple(map(wire.text, reply.addresses)), wire.text(reply.meeting))
    except TimeoutError:
        raise Unreachable(
            f"rank {request.rank} of {request.replica} has not met the others within {patience_s:g} s ({why}). "
            "Are all of its ranks up? Raise exchange.outage_deadline_s if they start slowly."
        ) from None
    finally:
        await channels.close()
