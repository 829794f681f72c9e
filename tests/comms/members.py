"""Real transports and a real coordinator for tests: members that carry bytes instead of training."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from comms.agreement import (
    COORDINATOR,
    Acknowledge,
    Applied,
    CatchUp,
    CommittedRound,
    Finish,
    Join,
    Manifest,
    Problem,
    Proposal,
    Report,
    RoundPlan,
)
from comms.coordinator import coordinate
from comms.grpc_transport import GrpcTransport
from comms.ledger import Ledger
from comms.run_state import RoundRules
from comms.security import Loopback, Security
from comms.store import PayloadStore, digest_of
from comms.transport import Transport
from comms.transport_settings import Route, TransportSettings

PATIENCE_S = 30.0
CONFIG, CORPUS = "c0" * 32, "d0" * 32
FRAGMENTS = {"embed": 300_000, "layer.0": 1, "head": 0}
"""Their payloads' lengths in bytes: more than a chunk, one, none."""
VALIDATION = {"a": (10.0, 10), "b": (90.0, 30)}
"""What of them validates, with which sum of losses, on how many targets; after each round."""


def rules(replicas: str, *, rounds: int = 3, min_replicas: int | None = None, **deadlines: float) -> RoundRules:
    waits = {"gather": 20.0, "publish": 20.0, "fetch": 10.0, "liveness": 5.0} | deadlines
    return RoundRules(
        tuple(replicas), CONFIG, rounds, 130, len(replicas) if min_replicas is None else min_replicas,
        waits["gather"], waits["publish"], waits["fetch"], waits["liveness"], ending_deadline_s=waits["fetch"],
    )  # fmt: skip


def loopback(member: str) -> Security:
    """How a member of these tests talks, unless a test says otherwise."""
    del member
    return Loopback()


def settings(
    replica: str,
    address: str,
    route: Route = "direct",
    outage_deadline_s: float = 20.0,
    security: Callable[[str], Security] = loopback,
    *,
    whereabouts: Callable[[], str | None] | None = None,
) -> TransportSettings:
    return TransportSettings(replica, address, route, security(replica), 0.5, 10.0, outage_deadline_s, whereabouts)


@contextmanager
def transport_of(
    folder: Path,
    replica: str,
    address: str,
    route: Route = "direct",
    outage_deadline_s: float = 20.0,
    *,
    security: Callable[[str], Security] = loopback,
    whereabouts: Callable[[], str | None] | None = None,
) -> Iterator[GrpcTransport]:
    """A transport with a store and a ledger of its own below `folder`, closed at the end."""
    with Ledger(folder / f"{replica}.jsonl", replica) as ledger:
        transport = GrpcTransport(
            settings(replica, address, route, outage_deadline_s, security, whereabouts=whereabouts),
            PayloadStore(folder / replica),
            ledger,
        )
        try:
            yield transport
        finally:
            transport.close()


def join_of(replica: str, transport: GrpcTransport, applied: list[Manifest] | None = None) -> Join:
    made_of = applied or []
    return Join(replica, "1", transport.address, CONFIG, CORPUS, 1000, len(made_of), theta_digest(made_of))


def theta_digest(applied: list[Manifest]) -> str:
    return digest_of(repr(applied).encode())


class CoordinatorThread:
    """A coordinator on a loop in a thread of its own."""

    def __init__(
        self,
        folder: Path,
        run_rules: RoundRules,
        address: str = "127.0.0.1:0",
        route: Route = "direct",
        security: Callable[[str], Security] = loopback,
    ):
        self._security = security(COORDINATOR)
        self.address = ""
        self.error: Exception | None = None
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, args=(folder, run_rules, address, route))
        self._thread.start()
        assert self._listening.wait(PATIENCE_S), "the coordinator does not listen"
        if self.error is not None and not self.address:
            self._thread.join(PATIENCE_S)
            raise self.error

    def stop(self) -> None:
        """Ends it, wherever it is."""

        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(cancel)
        self.join()

    def join(self) -> None:
        """Waits for its end; `error` is what it ended with."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the coordinator hangs"

    def _run(self, folder: Path, run_rules: RoundRules, address: str, route: Route) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve(folder, run_rules, address, route))
            except asyncio.CancelledError:
                pass
            except Exception as error:  # noqa: BLE001 - the test's own thread raises it
                self.error = error
            finally:
                self._listening.set()

    async def _serve(self, folder: Path, run_rules: RoundRules, address: str, route: Route) -> None:
        self._task = asyncio.current_task()

        def on_listening(bound: str) -> None:
            self.address = bound
            self._listening.set()

        with Ledger(folder / "coordinator.jsonl", COORDINATOR) as ledger:
            await coordinate(
                run="test",
                rules=run_rules,
                address=address,
                security=self._security,
                journal_path=folder / "coordinator.sqlite",
                ledger=ledger,
                metrics=folder / "metrics.jsonl",
                relay_store=PayloadStore(folder / "relayed") if route == "relay" else None,
                on_listening=on_listening,
            )


class Member:
    """A replica that keeps to the protocol, in a thread of its own; its payloads are bytes that say whose they are."""

    def __init__(
        self,
        folder: Path,
        name: str,
        address: str,
        *,
        route: Route = "direct",
        before_report: Callable[[int], None] = lambda _: None,
        before_acknowledge: Callable[[int], None] = lambda _: None,
        security: Callable[[str], Security] = loopback,
        whereabouts: Callable[[], str | None] | None = None,
    ) -> None:
        self._security = security
        self._whereabouts = whereabouts
        self.name = name
        self.applied: list[Manifest] = []
        self.contents: list[dict[str, bytes]] = []
        """What it got for each applied round, by digest."""
        self.plans: list[RoundPlan] = []
        self.error: Exception | None = None
        self._before_report = before_report
        self._before_acknowledge = before_acknowledge
        self._thread = threading.Thread(target=self._run, args=(folder, address, route))
        self._thread.start()

    def join(self) -> None:
        """Waits until it has been told that the run is over; raises what it failed with."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"{self.name} hangs"
        if self.error is not None:
            raise self.error

    def _run(self, folder: Path, address: str, route: Route) -> None:
        try:
            with transport_of(
                folder, self.name, address, route, security=self._security, whereabouts=self._whereabouts
            ) as transport:
                transport.join(join_of(self.name, transport))
                self._follow(transport)
        except Exception as error:  # noqa: BLE001 - the test's own thread raises it
            self.error = error

    def _follow(self, transport: Transport) -> None:
        while True:
            match transport.receive():
                case RoundPlan(round=number) as plan if number == len(self.applied) + 1:
                    self.plans.append(plan)
                    self._take_part(transport, plan)
                case CommittedRound(round=number) as committed if number == len(self.applied) + 1:
                    self._apply(transport, committed)
                case CatchUp():
                    for committed in transport.history(len(self.applied)):
                        self._apply(transport, committed)
                case Finish(failure):
                    assert not failure, failure
                    return
                case _:
                    pass

    def _take_part(self, transport: Transport, plan: RoundPlan) -> None:
        payloads = [
            transport.publish(plan.round, fragment, content_of(self.name, plan, fragment)) for fragment in FRAGMENTS
        ]
        transport.finish_publishing()
        self._before_report(plan.round)
        transport.send(Report(plan.round, tuple(payloads), 130, 2.0))
        while True:
            match transport.receive():
                case Proposal(round=plan.round) as proposal:
                    self._before_acknowledge(plan.round)
                    arrivals = transport.fetch(plan.round, proposal.manifest, proposal.holders, committed=False)
                    problems = tuple(a.content for a in arrivals if isinstance(a.content, Problem))
                    transport.send(Acknowledge(plan.round, proposal.attempt, problems))
                case CommittedRound(round=plan.round) as committed:
                    return self._apply(transport, committed)
                case CatchUp():
                    return self._apply(transport, transport.history(len(self.applied))[0])
                case _:
                    pass

    def _apply(self, transport: Transport, committed: CommittedRound) -> None:
        contents = dict[str, bytes]()
        for arrival in transport.fetch(committed.round, committed.manifest, committed.holders, committed=True):
            assert isinstance(arrival.content, bytes), arrival.content
            contents[arrival.entry.digest] = arrival.content
        self.applied.append(committed.manifest)
        self.contents.append(contents)
        loss_sum, targets = VALIDATION.get(self.name, (0.0, 0))
        transport.send(Applied(committed.round, theta_digest(self.applied), loss_sum, targets))


def content_of(replica: str, plan: RoundPlan, fragment: str) -> bytes:
    """The payload of a fragment: different for each replica, round and lease, but where it has no bytes."""
    text = f"{replica}/{plan.round}/{plan.lease}/{fragment}\n".encode()
    return (text * (FRAGMENTS[fragment] // len(text) + 1))[: FRAGMENTS[fragment]]
