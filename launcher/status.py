"""Asks the coordinator how the run stands, without ever waiting for its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from comms.channel import open_blocking_channel
from launcher.members import COORDINATOR
from launcher.progress import MemberProgress, RunStatus
from protos import round_pb2, round_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from comms.security import Security

ANSWER_DEADLINE_S = 5.0


class StatusPoller:
    """Calls `Rounds.Status` when asked to, and hands the answer on from gRPC's thread."""

    def __init__(self, address: str, security: Security, tell: Callable[[RunStatus], None]) -> None:
        """CertificateError when the operator's certificate can't be used."""
        self._channel = open_blocking_channel(address, COORDINATOR, security)
        self._stub = round_pb2_grpc.RoundsStub(self._channel)
        self._tell = tell
        self._is_waiting = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def ask(self) -> None:
        """Sends one question, unless the last is still unanswered. An answer that never comes is no error here."""
        if not self._is_waiting:
            self._is_waiting = True
            call = self._stub.Status.future(round_pb2.StatusRequest(), timeout=ANSWER_DEADLINE_S)
            call.add_done_callback(self._on_answer)

    def _on_answer(self, call: grpc.Future[round_pb2.StatusReply]) -> None:
        self._is_waiting = False
        if not call.cancelled() and call.exception() is None:
            self._tell(run_status(call.result()))


def run_status(reply: round_pb2.StatusReply) -> RunStatus:
    """The part of the coordinator's answer that the live view shows."""
    members = (MemberProgress(m.replica, m.state, m.applied_round) for m in reply.members)
    return RunStatus(phase=reply.phase, round=reply.round, members=tuple(members))
