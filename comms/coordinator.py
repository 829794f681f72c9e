"""The coordinator: carries messages between the replicas and the round machine, and writes down what it decides.

It holds no tensor and decides nothing itself. For each event: the machine advances, the journal is written, and only
then is anything sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import grpc

from comms import failpoints, wire
from comms.agreement import COORDINATOR, CommittedRound, Heartbeat, Join, RoundSummary
from comms.caller import refuse, require_name, require_operator
from comms.certificates import AUTHORITY, OPERATOR
from comms.channel import GOODBYE_S, listen, new_server
from comms.errors import AccessError, RunFailed, WrongName
from comms.join_token import Doorkeeper
from comms.journal import Journal
from comms.ledger import Ledger
from comms.limits import Throttle
from comms.marks import Marks
from comms.meetings import MeetingService
from comms.payloads import PayloadService
from comms.probe_service import ProbeService
from comms.round_deadlines import next_deadline_s, silent_from_s
from comms.rounds import advance
from comms.run_state import (
    Alive,
    Event,
    Gone,
    Heard,
    Phase,
    Record,
    Restarted,
    RoundRules,
    RunState,
    Send,
    Slept,
    Stopped,
    Summarise,
    Ticked,
)
from comms.security import Security, Tls
from comms.store import PayloadStore
from comms.uploads import Uploads
from protos import meeting_pb2_grpc, payload_pb2_grpc, probe_pb2_grpc, round_pb2_grpc
from protos import round_pb2 as pb

_LINGER_S = 10.0
_MESSAGES_AT_ONCE, _MESSAGES_PER_S = 200, 50.0
"""What one replica may say; a round needs a handful, and catching up one for each round."""
_TICK_S = 1.0
_ASLEEP_S = 3.0
"""More than this between two ticks: the process was stopped, or the machine slept. The silence was ours."""
_Stream = asyncio.Queue[pb.CoordinatorMessage | wire.WireError | None]
"""What is to be said to one replica; None, or what it did wrong, ends the conversation."""
_log = logging.getLogger(__name__)


class Coordinator(round_pb2_grpc.RoundsServicer):
    """Serves one run."""

    def __init__(
        self,
        run: str,
        rules: RoundRules,
        journal: Journal,
        ledger: Ledger,
        metrics: Path,
        *,
        shared_config: str = "",
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self._run = run
        self._shared_config = shared_config
        self._doorkeeper = doorkeeper
        self._journal = journal
        self._ledger = ledger
        self._metrics = metrics
        self._marks = Marks()
        self._streams: dict[str, _Stream] = {}
        self._changed = asyncio.Event()
        self._started_s = time.monotonic()
        self._last_summary: RoundSummary | None = None
        self._broken: Exception | None = None
        self._awake_s = time.monotonic()
        restored = journal.load(rules)
        self._state = restored or RunState(rules, since_s=time.monotonic())
        self._first_round = self._state.committed_round
        if restored is not None:
            _log.info("resuming after round %d", restored.committed_round)
            self._feed(Restarted())

    @property
    def state(self) -> RunState:
        """What the round machine holds."""
        return self._state

    async def until_over(self) -> None:
        """Feeds the machine with time until the run is over and everybody has been told. Raises what broke it."""
        while self._state.phase not in (Phase.DONE, Phase.FAILED):
            if self._broken is not None:
                raise self._broken
            wait_s = next_deadline_s(self._state, time.monotonic()) - time.monotonic()
            try:
                async with asyncio.timeout(min(max(0.0, wait_s), _TICK_S)):
                    await self._changed.wait()
            except TimeoutError:
                self._feed(Ticked())
            self._changed.clear()  # by what was fed here, too: or this would never wait
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while self._streams:
                    await self._changed.wait()
                    self._changed.clear()
        if self._state.phase is Phase.FAILED:
            raise RunFailed(self._state.failure)

    def hang_up(self) -> None:
        """Ends all conversations: gRPC's server would wait for the replicas to end them."""
        for stream in self._streams.values():
            stream.put_nowait(None)

    # ---- services ----

    async def Attend(
        self,
        request_iterator: AsyncIterator[pb.MemberMessage],
        context: grpc.aio.ServicerContext[pb.MemberMessage, pb.CoordinatorMessage],
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        """The conversation with one replica; a later one of the same replica ends it."""
        try:
            async with asyncio.timeout(self._state.rules.liveness_deadline_s):
                first = await anext(request_iterator)
            join = wire.member_message_from_pb(first)
            if not isinstance(join, Join):
                raise wire.WireError("a conversation begins with a Join")
            self._admit(join, first.join, context)
        except (wire.WireError, StopAsyncIteration, TimeoutError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error) or "no Join came")
        except AccessError as error:
            _log.warning("%s is not let in: %s", context.peer(), error)
            await refuse(context, error)
        replica = join.replica
        stream = _Stream()
        if (earlier := self._streams.get(replica)) is not None:
            earlier.put_nowait(None)
        self._streams[replica] = stream
        _log.info("%s joins from %s at round %d", replica, context.peer(), join.applied_round)
        self._ledger.control(peer=replica, direction="received", num_bytes=first.ByteSize())
        self._feed(Heard(replica, join))
        listener = asyncio.create_task(self._listen(replica, stream, request_iterator))
        try:
            while (message := await stream.get()) is not None:
                if isinstance(message, wire.WireError):
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(message))
                self._ledger.control(peer=replica, direction="sent", num_bytes=message.ByteSize())
                yield message
                if (last := message.WhichOneof("message")) in ("refusal", "finish"):
                    if last == "finish":  # what is on its way is still heard: both ends count the same bytes
                        await asyncio.wait({listener}, timeout=GOODBYE_S)
                    break
        finally:
            listener.cancel()
            if self._streams.get(replica) is stream:
                del self._streams[replica]
                if self._broken is None:
                    self._feed(Gone(replica))

    def _admit(
        self,
        join: Join,
        message: pb.Join,
        context: grpc.aio.ServicerContext[pb.MemberMessage, pb.CoordinatorMessage],
    ) -> None:
        """AccessError when whoever joins is not who it says it is, or does not know the token."""
        require_name(context, join.replica)
        if join.replica in (COORDINATOR, OPERATOR, AUTHORITY):
            raise WrongName(f"{join.replica!r} is no name for a replica; choose another")
        if self._doorkeeper is not None:
            self._doorkeeper.admit(join.replica, message.incarnation, message.proof, message.proved_at_s)

    async def _listen(self, replica: str, stream: _Stream, requests: AsyncIterator[pb.MemberMessage]) -> None:
        """Feeds the machine with what a replica says, until its stream ends."""
        throttle = Throttle(burst=_MESSAGES_AT_ONCE, per_s=_MESSAGES_PER_S)
        try:
            async for request in requests:
                await throttle.wait()  # each may cost a write to the disk
                if self._streams.get(replica) is not stream:
                    break
                self._ledger.control(peer=replica, direction="received", num_bytes=request.ByteSize())
                message = wire.member_message_from_pb(request)
                if isinstance(message, Join):
                    raise wire.WireError("a second Join in one conversation")
                self._feed(Alive(replica) if isinstance(message, Heartbeat) else Heard(replica, message))
        except wire.WireError as error:
            _log.warning("%s: %s; its conversation ends", replica, error)
            stream.put_nowait(error)
        finally:
            stream.put_nowait(None)

    async def History(
        self, request: pb.HistoryRequest, context: grpc.aio.ServicerContext[pb.HistoryRequest, pb.CommittedRound]
    ) -> AsyncIterator[pb.CommittedRound]:
        """The committed rounds after one, oldest first."""
        del context
        members = sorted(self._state.members.items())
        holders = tuple(holder for replica, member in members for holder in member.holders(replica))
        for committed in self._journal.history(request.after_round):
            yield wire.committed_to_pb(CommittedRound(committed.round, committed.manifest, committed.leases, holders))

    async def Describe(
        self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeReply]
    ) -> pb.DescribeReply:
        """What a machine that wants to join must know of the run."""
        del request, context
        digest = bytes.fromhex(self._state.rules.config_digest)
        return pb.DescribeReply(run=self._run, config=self._shared_config, config_digest=digest)

    async def Status(
        self, request: pb.StatusRequest, context: grpc.aio.ServicerContext[pb.StatusRequest, pb.StatusReply]
    ) -> pb.StatusReply:
        """What the run does now."""
        del request, context
        return self.status()

    @property
    def last_summary(self) -> RoundSummary | None:
        """The last round that was summed up since this process started."""
        return self._last_summary

    def status(self) -> pb.StatusReply:
        """What the run does now. Other threads may ask: what is read is replaced, never changed."""
        state, summary = self._state, self._last_summary
        return pb.StatusReply(
            run=self._run,
            phase=state.phase.value,
            failure=state.failure,
            round=state.round,
            total_rounds=state.rules.rounds,
            members=[
                pb.MemberStatus(
                    replica=replica,
                    state=self._member_state(state, replica),
                    applied_round=member.applied_round,
                    address=member.address,
                    rank_addresses=member.rank_addresses,
                )
                for replica, member in sorted(state.members.items())
            ],
            loss=summary.loss if summary else math.nan,
            validation_loss=math.nan if summary is None or summary.validation_loss is None else summary.validation_loss,
            tokens=state.tokens,
            round_payload_bytes=sum(summary.payload_bytes.values()) if summary else 0,
            uptime_s=time.monotonic() - self._started_s,
            rounds_since_start=state.committed_round - self._first_round,
        )

    async def Stop(
        self, request: pb.StopRequest, context: grpc.aio.ServicerContext[pb.StopRequest, pb.StopReply]
    ) -> pb.StopReply:
        """Ends the run for everybody, by the operator's word."""
        try:
            require_operator(context)
        except AccessError as error:
            _log.warning("%s may not stop the run: %s", context.peer(), error)
            await refuse(context, error)
        reason = wire.text(request.reason)
        _log.warning("stopped by the operator: %s", reason)
        self._feed(Stopped(reason))
        return pb.StopReply()

    def _member_state(self, state: RunState, replica: str) -> str:
        member = state.members[replica]
        now_s = time.monotonic()
        if now_s > silent_from_s(member, state.rules):
            return "away"
        if member.gone_since_s is not None or now_s > member.last_heard_s + state.rules.liveness_deadline_s / 2:
            return "silent"
        if member.applied_round < state.committed_round:
            return "applying" if member.planned_round > state.committed_round else "catching-up"
        if replica in state.acknowledged:
            return "acknowledged"
        if replica in state.reports:
            return "reported"
        return "working" if replica in state.leases else "observing"

    # ---- the machine ----

    def _feed(self, event: Event) -> None:
        """Lets the machine advance. What can't be written down, or was not foreseen, ends the run: see until_over."""
        if self._broken is not None:
            raise self._broken
        now_s = time.monotonic()
        asleep_s, self._awake_s = now_s - self._awake_s, now_s
        try:
            if asleep_s > _ASLEEP_S:
                _log.warning("stood still for %.1f s", asleep_s)
                self._advance(Slept(asleep_s))
            self._advance(event)
        except Exception as error:
            self._broken = error
            raise
        finally:
            self._changed.set()

    def _advance(self, event: Event) -> None:
        now_s = time.monotonic()
        before, (self._state, actions) = self._state, advance(self._state, event, now_s)
        committed = next((action.committed for action in actions if isinstance(action, Record)), None)
        self._mark(event, before, committed)
        for action in actions:
            if isinstance(action, Summarise):
                self._write_metrics(action.summary)
        if committed is not None:
            _log.info("round %d: committed with %s", committed.round, ", ".join(committed.contributors))
        if isinstance(event, Heard | Restarted) or actions or self._state.phase is not before.phase:
            if committed is not None:
                failpoints.reach("coordinator-before-journal", committed.round)
            self._journal.write(self._state, committed)
            if committed is not None:
                failpoints.reach("coordinator-after-journal", committed.round)
        for action in actions:
            if isinstance(action, Send) and (stream := self._streams.get(action.replica)) is not None:
                stream.put_nowait(wire.coordinator_message_to_pb(action.message))
        for replica, faults in self._state.faults.items():
            if before.faults.get(replica) != faults:
                _log.warning("%s is at fault, for the %d. time: %s", replica, len(faults), faults[-1])
        for replica, reason in self._state.absent.items():
            if before.absent.get(replica) != reason:
                _log.warning("round %d: goes on without %s: %s", self._state.round, replica, reason)

    def _mark(self, event: Event, before: RunState, committed: CommittedRound | None) -> None:
        """Notes when this happened, for the timeline."""
        now_s = time.time()
        if isinstance(event, Heard):
            self._marks.heard(event.replica, event.message, now_s)
        if committed is not None:
            self._marks.committed(committed.round, now_s)
        if self._state.phase is Phase.WORK and (before.phase, before.round) != (Phase.WORK, self._state.round):
            self._marks.opened(self._state.round, now_s)

    def _write_metrics(self, summary: RoundSummary) -> None:
        self._last_summary = summary
        now_s, marks = time.time(), self._marks.of(summary.round)
        times = asdict(marks) | {
            "opened_at_s": marks.opened_at_s or now_s - summary.round_s,
            "committed_at_s": marks.committed_at_s or now_s,
        }
        row = asdict(summary) | times
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._ledger.flush(summary.round)


async def coordinate(
    *,
    run: str,
    rules: RoundRules,
    address: str,
    security: Security,
    journal_path: Path,
    ledger: Ledger,
    metrics: Path,
    relay_store: PayloadStore | None,
    shared_config: str = "",
    on_listening: Callable[[str], None],
    watching: Callable[[Coordinator], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Serves a run at `address` until it is over. RunFailed when it ends early; Unreachable when the port is in use.

    `shared_config` is what Describe hands out: the config's shared part, as text that only its readers understand.
    """
    server = new_server()
    bound = listen(server, address, security)  # first: who can't listen must not touch the journal
    journal = Journal(journal_path)
    coordinator = None
    try:
        doorkeeper = Doorkeeper(run, security.token) if isinstance(security, Tls) else None
        coordinator = Coordinator(
            run, rules, journal, ledger, metrics, shared_config=shared_config, doorkeeper=doorkeeper
        )
        round_pb2_grpc.add_RoundsServicer_to_server(coordinator, server)
        if relay_store is not None:
            uploads = Uploads(
                lambda: coordinator.state.known,
                rules.most_payload_bytes,
                lambda: coordinator.state.committed_round + 1,
            )
            service = PayloadService(relay_store, ledger, uploads)
            payload_pb2_grpc.add_PayloadsServicer_to_server(service, server)
        probe_pb2_grpc.add_ProbesServicer_to_server(ProbeService(security, ledger), server)
        meetings = MeetingService(lambda replica: replica in coordinator.state.known, rules.gather_deadline_s)
        meeting_pb2_grpc.add_MeetingsServicer_to_server(meetings, server)
        with watching(coordinator):
            await server.start()
            on_listening(bound)
            await coordinator.until_over()
    finally:
        if coordinator is not None:
            coordinator.hang_up()
        await server.stop(grace=1.0)
        journal.close()
