"""Puts a payload at the coordinator, for the others to get there: route "relay"."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc

from comms.errors import DeadlineError, Refused
from comms.payloads import Parcel
from comms.peers import Peers

_RETRY_S = 0.25
_Code = grpc.StatusCode
_log = logging.getLogger(__name__)


async def upload(peers: Peers, parcel: Parcel, payload: bytes) -> None:
    """Puts it there, again and again. Refused; DeadlineError when it is not there within outage_deadline_s."""
    outage_s = peers.settings.outage_deadline_s
    until_s = time.monotonic() + outage_s
    while True:
        try:
            return await peers.payloads_at(peers.coordinator).put(parcel, payload, until_s - time.monotonic())
        except grpc.aio.AioRpcError as error:
            if error.code() is _Code.FAILED_PRECONDITION:
                _log.info("payload %s is not wanted any more: %s", parcel.fragment, error.details())
                return None  # and the report, which comes after it, won't be either
            if error.code() in (_Code.PERMISSION_DENIED, _Code.OUT_OF_RANGE):
                raise Refused(f"the coordinator does not take {parcel.fragment}: {error.details()}") from None
            if time.monotonic() + _RETRY_S >= until_s:
                raise DeadlineError(
                    f"payload {parcel.fragment} did not reach the coordinator ({error.details()})",
                    "publish", "outage_deadline_s", outage_s, parcel.round,
                ) from None  # fmt: skip
        await asyncio.sleep(_RETRY_S)
