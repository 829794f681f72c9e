"""What a machine that knows nothing but an address learns of a run, before it joins it."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from comms import wire
from comms.agreement import COORDINATOR, Holder
from comms.channel import open_blocking_channel
from comms.errors import Unreachable
from comms.security import Security
from protos import round_pb2 as pb
from protos import round_pb2_grpc

_DEADLINE_S = 20.0


@dataclass(frozen=True)
class Invitation:
    """A run as its coordinator describes it."""

    run: str
    config: str
    """The part of the config that all members share, as text; unchecked."""
    config_digest: str
    present: tuple[Holder, ...]
    """The replicas that take part now."""
    is_over: bool


def ask(address: str, security: Security) -> Invitation:
    """The invitation of the coordinator at `address`; blocks. Unreachable when nobody answers, or nobody we believe."""
    channel = open_blocking_channel(address, COORDINATOR, security)
    try:
        rounds = round_pb2_grpc.RoundsStub(channel)
        described: pb.DescribeReply = rounds.Describe(pb.DescribeRequest(), timeout=_DEADLINE_S, wait_for_ready=True)
        status: pb.StatusReply = rounds.Status(pb.StatusRequest(), timeout=_DEADLINE_S)
    except grpc.RpcError as error:
        why = error.details() if isinstance(error, grpc.Call) else str(error)
        raise Unreachable(
            f"no run answers at {address} within {_DEADLINE_S:g} s ({why}). Is it up, and are its address, "
            "--certificates or --insecure those of the run?"
        ) from None
    finally:
        channel.close()
    present = (member for member in status.members if member.state != "away")
    return Invitation(
        run=wire.name(described.run, "describe.run"),
        config=described.config,
        config_digest=wire.digest(described.config_digest, "describe.config_digest"),
        present=tuple(Holder(wire.name(m.replica, "status.replica"), wire.text(m.address)) for m in present),
        is_over=status.phase in ("done", "failed"),
    )
