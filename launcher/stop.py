"""`dist-train stop`: the operator ends a run from wherever it is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from comms.address import host_and_port
from comms.certificates import OPERATOR
from comms.channel import open_blocking_channel
from dist_train.config import ConfigError
from dist_train.security import security_of
from launcher.failures import LaunchError
from launcher.members import COORDINATOR
from protos import round_pb2, round_pb2_grpc

if TYPE_CHECKING:
    from dist_train.config import Config

ANSWER_DEADLINE_S = 10.0


def stop(config: Config, address: str | None, reason: str) -> str:
    """Asks the coordinator to end the run; the address that was asked. ConfigError or LaunchError when it does not."""
    address = address or config.exchange.address
    if host_and_port(address)[1] == 0:
        raise ConfigError(
            "exchange.address leaves the port open: say --coordinator HOST:PORT, as the launch and coordinator.log do"
        )
    try:
        with open_blocking_channel(address, COORDINATOR, security_of(config, OPERATOR)) as channel:
            request = round_pb2.StopRequest(reason=reason)
            round_pb2_grpc.RoundsStub(channel).Stop(request, timeout=ANSWER_DEADLINE_S)
    except grpc.RpcError as error:
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        raise LaunchError(f"the coordinator at {address} did not stop the run: {details}") from None
    return address
