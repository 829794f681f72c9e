"""A run without a network: the round machine, and replicas that keep to the protocol, in a world whose time we hold.

`World` plays the coordinator's process (`feed`, `restart`) and `Replica` a replica's: the loops of
`dist_train.replica` and `dist_train.round`, and under them `comms.conversation`. Nothing happens by
itself: whoever holds the world says who speaks, who hears, who works, who fails, and how much time passes. Whatever
happens, `World.check` holds after it.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from comms.agreement import (
    Acknowledge,
    Applied,
    CatchUp,
    CommittedRound,
    CoordinatorMessage,
    Finish,
    Heartbeat,
    Join,
    Leave,
    Manifest,
    MemberMessage,
    Offer,
    Payload,
    Problem,
    Proposal,
    Refusal,
    Report,
    RoundPlan,
    RoundSummary,
)
from comms.leases import Lease, Segment, merge, without
from comms.round_deadlines import next_deadline_s
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
    Ticked,
)

HEARTBEAT_S = 2.0
CONFIG, CORPUS = "c0" * 32, "d0" * 32
TOKENS_PER_EPOCH = 1000
_STATE = TypeAdapter(RunState)


def rules(
    replicas: str = "abc",
    *,
    rounds: int = 3,
    min_replicas: int = 2,
    lease_tokens: int = 130,
    gather_deadline_s: float = 60.0,
    publish_deadline_s: float = 20.0,
    fetch_deadline_s: float = 10.0,
    liveness_deadline_s: float = 5.0,
    reconnect_deadline_s: float = 3.0,
    most_replicas: int = 0,
    most_faults: int = 3,
    most_replayed_rounds: int = 20,
) -> RoundRules:
    """Rules whose deadlines all differ; the replicas are the letters of `replicas`."""
    return RoundRules(
        tuple(replicas), CONFIG, rounds, lease_tokens, min_replicas,
        gather_deadline_s, publish_deadline_s, fetch_deadline_s, liveness_deadline_s, reconnect_deadline_s,
        work_deadline_s=1000.0, ending_deadline_s=12.0, most_replicas=most_replicas, most_faults=most_faults,
        most_replayed_rounds=most_replayed_rounds,
    )  # fmt: skip


def sha(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class Replica:
    """One replica's process, or what is left of it."""

    name: str
    incarnation: int = 0
    mode: str = "dead"
    """dead; follow: waits for the coordinator; work: trains; agree: has reported, waits; ended: the run is complete."""
    awake: bool = True
    connected: bool = False
    joined: bool = False
    """Whether the coordinator has heard the join of this stream; before that it says nothing."""
    applied: list[Manifest] = field(default_factory=list)
    """What theta was made of, round by round."""
    saved: list[Manifest] = field(default_factory=list)
    """The same, as of the newest checkpoint."""
    save_every: int = 1
    damage: str = ""
    """Anything but "" makes theta another one."""
    saved_damage: str = ""
    is_flaky: bool = False
    """Whether its memory fails in every outer step."""
    trains: float = 1.0
    """The share of a lease that it gets through."""
    offer: Offer | None = None
    """The snapshot that it serves."""
    told: Applied | None = None
    """What it said of the round that it applied last."""
    plan: RoundPlan | None = None
    report: Report | None = None
    inbox: deque[CoordinatorMessage] = field(default_factory=deque)
    outbox: deque[MemberMessage] = field(default_factory=deque)
    heard: list[CoordinatorMessage] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    """Digests of payloads that it can't get, or that are broken when it gets them."""
    refused: str = ""
    """Why the coordinator would not have it."""
    config_digest: str = CONFIG
    corpus_digest: str = CORPUS
    loss: float = 2.0
    fragments: tuple[str, ...] = ("embed", "layer.0")

    @property
    def round(self) -> int:
        return len(self.applied)

    @property
    def theta_digest(self) -> str:
        return sha("theta", self.applied, self.damage)

    @property
    def is_running(self) -> bool:
        return self.mode not in ("dead", "ended")

    @property
    def join(self) -> Join:
        return Join(
            self.name, str(self.incarnation), f"{self.name}:1", self.config_digest, self.corpus_digest,
            TOKENS_PER_EPOCH, self.round, self.theta_digest,
        )  # fmt: skip

    def payloads(self, number: int, trained: Lease) -> tuple[Payload, ...]:
        """What its work on a lease gives, always the same."""
        return tuple(Payload(f, sha("payload", self.name, number, trained, f), 100) for f in self.fragments)

    def unused(self, lease: Lease) -> Lease:
        """What it does not get to: the end of the lease."""
        left = sum(segment.num_tokens for segment in lease)
        spare, rest = min(left - 1, int((1 - self.trains) * left)), list[Segment]()
        for segment in sorted(lease, reverse=True):
            taken = min(spare, segment.num_tokens)
            spare -= taken
            rest += [replace(segment, start=segment.stop - taken)] if taken else []
        return tuple(sorted(rest))


class World:
    """A coordinator, its replicas, and the time."""

    def __init__(self, run_rules: RoundRules, now_s: float = 1000.0) -> None:
        self.rules = run_rules
        self.now_s = now_s
        self.heartbeat_due_s = now_s
        self.state = RunState(run_rules, since_s=now_s)
        self.replicas = {name: Replica(name) for name in run_rules.replicas}
        self.history: list[CommittedRound] = []
        self.reported: dict[int, set[str]] = {}
        self.work_of: dict[str, tuple[str, int, Lease]] = {}
        """By payload digest: who made it in which round from which lease."""
        self.snapshots: dict[str, tuple[list[Manifest], str]] = {}
        """By index digest: what theta in them was made of, and its damage."""
        self.spoiled: set[str] = set()
        """Digests of payloads that nobody can decode."""
        self.expelled: dict[str, int] = {}
        """Who is out for good, and how many rounds had been committed then."""
        self.summaries: list[RoundSummary] = []
        self.left_out: list[tuple[int, str, str]] = []

    def __getitem__(self, name: str) -> Replica:
        return self.replicas[name]

    # ---- the coordinator's process ----

    def feed(self, event: Event) -> None:
        """One event; what it answers is written down, then said, as the coordinator does."""
        before = self.state
        self.state, actions = advance(self.state, event, self.now_s)
        if before.phase in (Phase.DONE, Phase.FAILED) and not isinstance(event, Restarted):
            assert self.state.phase is before.phase, "what is over stays over"
        for action in actions:
            match action:
                case Record(committed):
                    assert committed.round == len(self.history) + 1, "rounds are committed in order, each once"
                    self.history.append(committed)
                case Send(name, message):
                    self._send(name, message)
                case _:
                    self.summaries.append(action.summary)
        for name, faults in self.state.faults.items():
            if len(faults) >= self.rules.most_faults:
                self.expelled.setdefault(name, len(self.history))
        for name, why in self.state.absent.items():
            if before.absent.get(name) != why:
                self.left_out.append((self.state.round, name, why))
        self.check()

    def pardon(self) -> None:
        """The operator raises exchange.most_faults and launches again."""
        self.rules = replace(self.rules, most_faults=10**6)
        self.expelled = {}
        self.state = replace(self.state, rules=self.rules)
        self.restart()

    def restart(self, now_s: float | None = None) -> None:
        """The coordinator is killed and started again, on a clock that may have nothing to do with the earlier one."""
        self.now_s = self.heartbeat_due_s = self.now_s if now_s is None else now_s
        for replica in self.replicas.values():
            replica.connected = False
        state = _STATE.validate_json(_STATE.dump_json(self.state))
        assert state == self.state, "the state survives the journal"
        self.state = state
        self.feed(Restarted())

    def _send(self, name: str, message: CoordinatorMessage) -> None:
        replica = self.replicas[name]
        if not (replica.connected and replica.joined):
            return
        if isinstance(message, Proposal | CommittedRound):
            assert replica.round >= message.round - 1, f"{name} is told of round {message.round} too early"
        replica.inbox.append(message)

    # ---- what replicas do ----

    def start(self, *names: str) -> None:
        """Starts processes, each from its newest checkpoint; they connect, and have not spoken yet."""
        for name in names:
            old = self.replicas.get(name, Replica(name))
            self.replicas[name] = new = Replica(
                name, old.incarnation + 1, "follow", applied=list(old.saved), saved=old.saved,
                save_every=old.save_every, damage=old.saved_damage, saved_damage=old.saved_damage, trains=old.trains,
                is_flaky=old.is_flaky, refuses=old.refuses, config_digest=old.config_digest,
                corpus_digest=old.corpus_digest, loss=old.loss, fragments=old.fragments,
            )  # fmt: skip
            if new.saved:
                self._serve_snapshot(new)
            self.connect(name)

    def crash(self, *names: str, noticed: bool = True) -> None:
        """Processes end. The coordinator notices that their streams broke, unless their machines went as well."""
        for name in names:
            self[name].mode = "dead"
            self._break_stream(name, noticed)

    def _break_stream(self, name: str, noticed: bool) -> None:
        replica = self[name]
        had_joined = replica.connected and replica.joined
        replica.connected = False
        if had_joined and noticed:
            self.feed(Gone(name))

    def stand_still(self, seconds: float) -> None:
        """The coordinator's process is stopped for a while; the world goes on, and it hears nothing of it."""
        self.now_s += seconds
        self.heartbeat_due_s = self.now_s
        self.feed(Slept(seconds))

    def connect(self, name: str) -> None:
        """Opens a stream; it begins with the join, and what may have been lost with the stream before."""
        replica = self[name]
        replica.connected, replica.joined = True, False
        opening: list[MemberMessage] = [replica.join]
        if replica.told is not None:
            opening.append(replica.told)
        if replica.report is not None and replica.report.round > replica.round:
            opening.append(replica.report)
        if replica.offer is not None:
            opening.append(replica.offer)
        replica.outbox = deque(opening)

    def cut(self, name: str, lost_inbound: int = 1000, *, noticed: bool = True) -> None:
        """Breaks a stream; what was under way is lost, and so is what the replica has yet to say on it."""
        replica = self[name]
        self._break_stream(name, noticed)
        for _ in range(min(lost_inbound, len(replica.inbox))):
            replica.inbox.pop()
        replica.outbox.clear()

    def leave(self, name: str) -> None:
        self.feed(Heard(name, Leave("has to go")))
        self.crash(name)

    def say(self, name: str) -> None:
        """The next message of a replica reaches the coordinator."""
        message = self[name].outbox.popleft()
        self[name].joined |= isinstance(message, Join)
        if isinstance(message, Report):
            self.reported.setdefault(message.round, set()).add(name)
        self.feed(Alive(name) if isinstance(message, Heartbeat) else Heard(name, message))

    def hear(self, name: str) -> None:
        """A replica takes the next message from its inbox and does what it says."""
        replica = self[name]
        message = replica.inbox.popleft()
        replica.heard.append(message)
        match message:
            case Refusal(reason):
                replica.refused = reason
                self.crash(name)
            case Finish(failure):
                self.crash(name)
                replica.mode = "dead" if failure else "ended"
            case Proposal(round=number) if replica.mode == "agree" and replica.plan and number == replica.plan.round:
                problems = {e.digest for e in message.manifest} & replica.refuses
                answer = [Problem(d, f"{self.work_of[d][0]}'s payload is broken") for d in sorted(problems)]
                spoiled = {entry.digest for entry in message.manifest} & self.spoiled
                answer += [Problem(d, f"{self.work_of[d][0]}'s is spoiled", broken=True) for d in sorted(spoiled)]
                replica.outbox.append(Acknowledge(number, message.attempt, tuple(answer)))
            case CommittedRound() if message.round == replica.round + 1:
                self._apply(replica, message)
            case RoundPlan(round=number) if replica.mode == "follow" and number == replica.round + 1:
                replica.mode, replica.plan = "work", message
            case CatchUp() if message.damaged_digest == replica.theta_digest:
                replica.applied, replica.damage, replica.saved, replica.saved_damage = [], "", [], ""
                replica.mode, replica.plan, replica.report, replica.offer = "follow", None, None, None
                self._catch_up(replica, message)
            case CatchUp(number) if number > replica.round and replica.mode == "agree":
                self._apply(replica, self.history[replica.round])
            case CatchUp(number) if number > replica.round:
                self._catch_up(replica, message)
            case _:
                pass  # a repetition
        self.check()

    def work(self, name: str) -> None:
        """A replica that trains is done with it, and reports."""
        replica = self[name]
        assert replica.plan is not None
        number, unused = replica.plan.round, replica.unused(replica.plan.lease)
        trained = without(replica.plan.lease, unused)
        payloads = replica.payloads(number, trained)
        for payload in payloads:
            self.work_of[payload.digest] = (name, number, trained)
        tokens = sum(segment.num_tokens for segment in trained)
        replica.report = Report(number, payloads, tokens, replica.loss, unused=unused)
        replica.outbox.append(replica.report)
        replica.mode = "agree"

    def _catch_up(self, replica: Replica, order: CatchUp) -> None:
        for source in order.snapshots:
            holders = [self.replicas[holder.replica] for holder in source.holders]
            is_served = any(holder.is_running and holder.offer == source.offer for holder in holders)
            if is_served and source.offer.round > replica.round:
                applied, replica.damage = self.snapshots[source.offer.index_digest]
                replica.applied, replica.mode = list(applied), "follow"
                self._tell(replica)
                break
        for committed in self.history[replica.round :]:
            self._apply(replica, committed)

    def _serve_snapshot(self, replica: Replica) -> None:
        index = sha("index", replica.round, replica.theta_digest)
        self.snapshots[index] = (list(replica.applied), replica.damage)
        replica.offer = Offer(replica.round, replica.theta_digest, index, 100)
        replica.outbox.append(replica.offer)

    def _apply(self, replica: Replica, committed: CommittedRound) -> None:
        if {entry.digest for entry in committed.manifest} & replica.refuses:
            replica.refuses = set()  # its link will be mended by the time it is started again
            self.crash(replica.name)
        if replica.mode == "dead":
            return
        replica.applied.append(committed.manifest)
        if replica.is_flaky:
            replica.damage = f"{replica.name} in round {replica.round}, {replica.incarnation}"
        replica.mode = "follow"
        self._tell(replica)
        if replica.round % replica.save_every == 0:
            replica.saved, replica.saved_damage = list(replica.applied), replica.damage
            self._serve_snapshot(replica)

    def _tell(self, replica: Replica) -> None:
        replica.told = Applied(replica.round, replica.theta_digest, replica.loss, 1)
        replica.outbox.append(replica.told)

    # ---- time, and everybody at once ----

    def pass_time(self, seconds: float) -> None:
        """Time passes: who is awake says so, and the coordinator is woken when it asked for it, not otherwise."""
        until_s = self.now_s + seconds
        while True:
            deadline_s = next_deadline_s(self.state, self.now_s)
            assert deadline_s > self.now_s
            self.now_s = min(until_s, deadline_s, self.heartbeat_due_s)
            if self.now_s >= self.heartbeat_due_s:
                self.heartbeat_due_s = self.now_s + HEARTBEAT_S
                for replica in self.replicas.values():
                    if replica.is_running and replica.awake and replica.connected and replica.joined:
                        self.feed(Alive(replica.name))
            if self.now_s == deadline_s:
                self.feed(Ticked())
            if self.now_s == until_s:
                return

    def act(self, *, work: str | None = None) -> None:
        """Everybody that is awake says, hears and does all there is to say, hear and do; `work`: only these train."""
        for _ in range(1000):
            busy = False
            for name in sorted(self.replicas):
                busy |= self.act_once(name, trains=work is None or name in work)
            if not busy:
                return
        raise AssertionError("they talk without end")

    def act_once(self, name: str, *, trains: bool = True) -> bool:
        """Says, hears or does one thing; False when there is none."""
        replica = self[name]
        if not replica.is_running or not replica.awake:
            return False
        if replica.connected and replica.outbox:
            self.say(name)
        elif replica.inbox and replica.mode != "work":
            self.hear(name)
        elif replica.mode == "work" and trains:
            self.work(name)
        else:
            return False
        return True

    def mend(self) -> None:
        """From now on nothing fails: the dead are started, the silent speak, every payload can be had."""
        self.spoiled = set()
        for name, replica in list(self.replicas.items()):
            replica.awake, replica.is_flaky, replica.refuses = True, False, set()
            if replica.damage or replica.saved_damage:
                self.crash(name)
                replica.saved, replica.saved_damage = [], ""
            if replica.mode == "dead" and not replica.refused:
                self.start(name)
            elif replica.is_running and not replica.connected:
                self.connect(name)

    def run_to_the_end(self, steps: int = 60) -> None:
        """Everybody behaves and time passes, until the run is over and everybody knows it, or `steps` are done."""
        for _ in range(steps):
            self.mend()
            self.act()
            if self.state.phase is Phase.FAILED or all(replica.mode == "ended" for replica in self.welcome):
                return
            deadline_s = next_deadline_s(self.state, self.now_s)
            self.pass_time(min(HEARTBEAT_S, deadline_s - self.now_s))

    @property
    def welcome(self) -> list[Replica]:
        """Those that were not refused."""
        return [replica for replica in self.replicas.values() if not replica.refused]

    # ---- what always holds ----

    def check(self) -> None:
        state = self.state
        assert state.committed_round == len(self.history)
        self._check_corpus()
        for committed in self.history[-1:]:
            contributors = set(committed.contributors)
            assert not {entry.digest for entry in committed.manifest} & self.spoiled
            assert all(len(self.history) <= self.expelled.get(name, math.inf) for name in contributors)
            assert len({*self.state.members} - {*self.rules.replicas}) <= max(0, self.rules.most_replicas)
            assert len(contributors) >= self.rules.min_replicas
            assert contributors <= self.reported[committed.round]
            assert contributors == set(committed.leases)
            for entry in committed.manifest:
                made = (entry.replica, committed.round, committed.leases[entry.replica])
                assert self.work_of[entry.digest] == made, "a contribution counts for the lease it was made from"
        for replica in self.replicas.values():
            assert replica.applied == [committed.manifest for committed in self.history[: replica.round]]

    def _check_corpus(self) -> None:
        """Consumed, held and returned: each token that was ever granted is exactly one of them."""
        book = self.state.book
        if book is None:
            assert not self.state.leases
            return
        consumed = [lease for committed in self.history for lease in committed.leases.values()]
        everything = merge(tuple(_segments([*consumed, *self.state.leases.values(), book.returned])))
        epochs = [Segment(epoch, 0, TOKENS_PER_EPOCH) for epoch in range(book.epoch)]
        granted = [*epochs, *([Segment(book.epoch, 0, book.position)] if book.position else [])]
        assert list(everything) == granted, "a token was lost, or is somewhere twice"


def _segments(leases: Iterable[Lease]) -> Iterable[Segment]:
    return (segment for lease in leases for segment in lease)
