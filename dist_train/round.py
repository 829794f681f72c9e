"""One outer round, from documents to equal parameters. Read this page first.

    documents -> lease -> batches -> loss -> inner optimizer   x H            `train`
      -> pseudo-gradient -> error feedback -> top-k -> 2 bits
      -> entropy code -> payload                                              `publish`     the wire
      -> proposal -> fetch -> check -> acknowledge -> commit                  `agree`       the wire
      -> decode -> aggregate -> outer step -> digest                          `apply`

Every replica runs this at the same time, each on its own lease. What crosses the wire is said in exactly two places:
`publish` hands out this replica's payloads, `agree` gets the others'. A round commits on one list of payloads (the
manifest) for everybody, or not at all; nothing is applied before that. Three kinds of replica call `apply`:

    one that took part      train, publish, agree, apply
    one that watched        apply                           it has no lease: it joined late (`follow`)
    one that resumes        train, (no publish), apply      it had a lease, and has lost its work (`follow`)

A replica that learns in the middle of a round that its parameters are damaged gives the round up (`Damaged`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from comms import failpoints
from comms.agreement import (
    Acknowledge,
    Applied,
    CatchUp,
    CommittedRound,
    Entry,
    Finish,
    Manifest,
    Problem,
    Proposal,
    Refusal,
    Report,
    RoundPlan,
)
from comms.errors import CommsError, RunFailed
from comms.leases import Lease
from comms.transport import Transport
from compression.codec import PayloadError, Update
from dist_train.clock import WALL_CLOCK, Clock
from dist_train.config import Config
from dist_train.data.batches import Batch, batches_of, validation_batches, window_batches
from dist_train.data.stream import Stream
from dist_train.engine import Engine
from dist_train.inner import InnerOptimizer
from dist_train.outer import OuterMethod

_log = logging.getLogger(__name__)


@dataclass
class Replica:
    """What a round works with. `round` is the last one applied, `theta_digest` that of the parameters after it."""

    id: str
    config: Config
    stream: Stream
    inner: InnerOptimizer
    outer: OuterMethod
    transport: Transport
    round: int
    theta_digest: str
    clock: Clock = WALL_CLOCK
    snapshots_taken: int = 0
    """How often this process began with others' parameters. Told in every round, for replayed ones are not recorded."""

    def figures(self) -> dict[str, float]:
        """How its training and its exchange are, since this was last asked."""
        taken = {"snapshots_taken": float(self.snapshots_taken)} if self.snapshots_taken else {}
        return {**self.outer.figures(), **self.inner.engine.figures(), **taken}


class Damaged(Exception):
    """The replica's parameters are not the others': it has to do `order` instead."""

    def __init__(self, order: CatchUp) -> None:
        super().__init__("the parameters are damaged")
        self.order = order


@dataclass
class Work:
    """What a replica brings to a round: its report in the making."""

    tokens: int
    loss: float
    unused: Lease = ()
    """What of the lease it did not get to."""
    phase_s: dict[str, float] = field(default_factory=dict)
    clock: Clock = WALL_CLOCK
    _phase: str | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds spent inside to a phase, and takes them from the one around it: each counts once."""
        started_s = self.clock.now_s()
        around, self._phase = self._phase, phase
        try:
            yield
        finally:
            self.clock.did(phase)
            self._phase, spent_s = around, self.clock.now_s() - started_s
            self.phase_s[phase] = self.phase_s.get(phase, 0.0) + spent_s
            if around is not None:
                self.phase_s[around] = self.phase_s.get(around, 0.0) - spent_s


def take_part(replica: Replica, plan: RoundPlan) -> None:
    """A whole round of a replica that has a lease in it."""
    work = train(replica, plan.round, plan.lease, window_s=replica.config.inner.seconds)
    publish(replica, plan.round, work)
    mail = Mail(replica)
    committed = agree(replica, plan.round, mail, work)
    apply(replica, committed, mail, work)


def follow(replica: Replica, committed: CommittedRound) -> None:
    """A round that was committed without this replica, or while it was away; its own part in it is worked out again.

    The work is deterministic, and only it can bring back what the replica had kept to itself: its inner optimizer and
    its error feedback.
    """
    work = Work(0, 0.0, clock=replica.clock)
    if replica.outer.remembers and replica.id in committed.leases:
        work = train(replica, committed.round, committed.leases[replica.id])
        replica.outer.accumulate()
    apply(replica, committed, Mail(replica), work)


# ---- the four phases ----


def train(replica: Replica, round_number: int, lease: Lease, window_s: float | None = None) -> Work:
    """H inner steps on the lease's documents, from theta; as many as fit in `window_s`, and all where it is None.

    What a window cut off is not in the committed lease, so that to redo a round is to train on all of that. Under DDP:
    the gradient of one batch, and no step.
    """
    replica.inner.global_step = (round_number - 1) * replica.config.steps_per_round
    tokens, loss_sum, targets = 0, 0.0, 0
    work, started_s, taken = Work(0, 0.0, clock=replica.clock), replica.clock.now_s(), 0
    with work.timed("compute"):
        for batch, rest in _foretold(replica.inner.engine, _batches(replica, lease)):
            if window_s is not None and taken:
                fits = (replica.clock.now_s() - started_s) * (taken + 1) / taken <= window_s
                if not replica.outer.duties.crew.least(int(fits)):
                    break
            taken, work.unused = taken + 1, rest
            loss = replica.inner.accumulate(batch)
            if replica.outer.remembers:
                replica.inner.step()
            tokens += batch.num_tokens
            loss_sum += loss * batch.num_targets
            targets += batch.num_targets
    work.tokens, work.loss = tokens, loss_sum / max(1, targets)
    said = f", loss {work.loss:.4f}" if work.loss else ""  # of several ranks, some know of none
    _log.info("round %d: trained on %d tokens%s", round_number, tokens, said)
    return work


def _batches(replica: Replica, lease: Lease) -> Iterator[tuple[Batch, Lease]]:
    """The batches of a lease, and what of it is left after each."""
    inner, steps = replica.config.inner, replica.config.steps_per_round
    if inner.seconds is not None:
        return window_batches(replica.stream, lease, steps, inner.batch_tokens)
    return ((batch, ()) for batch in batches_of(replica.stream, lease, steps))


def _foretold(engine: Engine, batches: Iterator[tuple[Batch, Lease]]) -> Iterator[tuple[Batch, Lease]]:
    """The same, each time the engine has been told of the one after it."""
    one = next(batches, None)
    while one is not None:
        following = next(batches, None)
        engine.expect(None if following is None else following[0].document_lengths)
        yield one
        one = following


def publish(replica: Replica, round_number: int, work: Work) -> None:
    """Encodes fragment after fragment, hands them out, and reports to the coordinator."""
    failpoints.reach("before-publish", round_number)
    outer, payloads = replica.outer, []
    with work.timed("encode"):
        outer.gather()
    for fragment in outer.owned:
        with work.timed("encode"):
            encoded = outer.codec.encode(outer.contribution(fragment), outer.layouts[fragment])  # (1), (2), (3)
        encoded = failpoints.spoil("encoded-payload", round_number, encoded)
        with work.timed("publish"):
            payloads.append(replica.transport.publish(round_number, fragment, encoded))
    with work.timed("publish"):
        replica.transport.finish_publishing()
    report = Report(round_number, tuple(payloads), work.tokens, work.loss, dict(work.phase_s), work.unused)
    replica.transport.send(report)
    _log.info("round %d: published %d bytes", round_number, sum(payload.num_bytes for payload in payloads))
    work.phase_s.clear()
    failpoints.reach("after-publish", round_number)


def agree(replica: Replica, round_number: int, mail: Mail, work: Work) -> CommittedRound:
    """Fetches and checks what is proposed, until a proposal is committed."""
    while True:
        with work.timed("wait"):
            message = replica.transport.receive()
        match message:
            case Proposal(round=number) if number == round_number:
                with work.timed("fetch"):
                    problems = mail.fetch(message.manifest, message, work)
                failpoints.reach("before-acknowledge", round_number)
                replica.transport.send(Acknowledge(number, message.attempt, problems))
            case CommittedRound(round=number) if number == round_number:
                return message
            case CatchUp(damaged_digest=replica.theta_digest):
                raise Damaged(message)
            case CatchUp(committed_round) if committed_round >= round_number:
                # It was committed, and the coordinator, or this replica, was away before that was said.
                return _as_recorded(replica, round_number)
            case Finish(failure) if failure:
                raise RunFailed(failure)
            case RoundPlan() | Proposal() | CommittedRound() | CatchUp():
                pass  # a repetition, of this round or one before: the conversation with the coordinator broke
            case Finish() | Refusal():
                raise CommsError(f"the coordinator ends the run in the middle of round {round_number}: {message}")


def _as_recorded(replica: Replica, round_number: int) -> CommittedRound:
    """A committed round as the journal has it. CommsError when the coordinator gives none, or another."""
    committed = next(iter(replica.transport.history(round_number - 1)), None)
    if committed is None or committed.round != round_number:
        raise CommsError(f"the coordinator says that round {round_number} is committed, and does not give it")
    return committed


def apply(replica: Replica, committed: CommittedRound, mail: Mail, work: Work) -> None:
    """Takes the outer step with the committed payloads, in the manifest's order, and tells what became of it."""
    failpoints.reach("between-commit-and-apply", committed.round)
    with work.timed("fetch"):
        if problems := mail.fetch(committed.manifest, committed, work):
            raise CommsError(f"round {committed.round} is committed, but {problems[0].reason}")
    with work.timed("apply"):
        for fragment in replica.outer.needed:
            entries = [entry for entry in committed.manifest if entry.fragment == fragment]
            updates = [mail.update(entry) for entry in entries]
            own = next((u for u, e in zip(updates, entries, strict=True) if e.replica == replica.id), None)
            replica.outer.apply(fragment, updates, [entry.weight_tokens for entry in entries], own)  # (4), (5), (6)
        replica.outer.finish_round()
        replica.theta_digest = digest = replica.outer.digest()
    replica.round = committed.round
    _log.info("round %d: applied %s, parameters %s", committed.round, ", ".join(committed.contributors), digest[:12])
    with work.timed("validate"):
        loss_sum, targets = validate(replica, committed)
    replica.transport.send(Applied(committed.round, digest, loss_sum, targets, dict(work.phase_s), replica.figures()))


def validate(replica: Replica, committed: CommittedRound) -> tuple[float, int]:
    """This replica's share of the validation documents, when it is time for them: sum of losses, and targets."""
    config, contributors = replica.config, _validating(replica.config, committed.contributors)
    due = committed.round % config.validate_every_rounds == 0 or committed.round == config.rounds
    if not due or replica.id not in contributors:
        return 0.0, 0
    share = (contributors.index(replica.id), len(contributors))
    batches = validation_batches(replica.stream.corpus, config.data.validation_tokens, config.inner.batch_tokens, share)
    return replica.inner.engine.evaluate(batches)


def _validating(config: Config, contributors: Sequence[str]) -> list[str]:
    """Who evaluates: those who see the model as it is, and not through a compressed pipeline, where there are any."""
    through = {one.id for one in config.replica if one.pipeline and one.compression != "none"}
    return [name for name in contributors if name not in through] or list(contributors)


class Mail:
    """The payloads of one round as they arrive, each checked before it counts."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._updates: dict[str, Update] = {}

    def fetch(self, manifest: Manifest, source: Proposal | CommittedRound, work: Work) -> tuple[Problem, ...]:
        """Gets what this rank needs and has not yet; says what can't be had, or is not what its fragment allows."""
        outer = self._replica.outer
        problems = [
            Problem(entry.digest, f"{entry.replica} sent {entry.fragment}, which this model does not have", broken=True)
            for entry in manifest
            if not outer.has(entry.fragment)
        ]
        wanted = tuple(e for e in manifest if e.fragment in outer.layouts and e.digest not in self._updates)
        committed = isinstance(source, CommittedRound)
        for arrival in self._replica.transport.fetch(source.round, wanted, source.holders, committed=committed):
            content = arrival.content
            with work.timed("decode"):
                problem = content if isinstance(content, Problem) else self._open(arrival.entry, content)
            if problem is not None:
                problems.append(problem)
        return tuple(problems)

    def update(self, entry: Entry) -> Update:
        """The decoded payload of an entry that was fetched."""
        return self._updates[entry.digest]

    def _open(self, entry: Entry, payload: bytes) -> Problem | None:
        outer = self._replica.outer
        try:
            self._updates[entry.digest] = outer.codec.decode(payload, outer.layouts[entry.fragment])
        except PayloadError as error:
            return Problem(entry.digest, f"{entry.fragment} of {entry.replica}: {error}", broken=True)
        return None
