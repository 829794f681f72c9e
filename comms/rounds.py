"""The round machine: who takes part, what a round consists of, and when it is committed.

`advance(state, event, now_s) -> (state, actions)` is pure: no clock, no network, no file. The coordinator feeds it
and carries out what it answers; tests feed it anything. A handler only writes down what the event says; `progress`
then looks whether the round can move:

    GATHER --all replicas there, or deadline and enough--> WORK
    WORK   --all living members reported, or deadline and enough--> AGREE     (sends Proposal)
    AGREE  --a payload nobody can supply--> AGREE with the next attempt       (sends Proposal)
    AGREE  --all contributors dead, others there--> WORK, with those          (sends RoundPlan)
    AGREE  --all living members acknowledged--> WORK of the next round        (sends CommittedRound, RoundPlan)
                                            or ENDING after the last one      (sends CommittedRound)
    ENDING --all living members applied, or none for a deadline--> DONE       (sends Finish)
    any    --coordinator restarted--> GATHER, the open round keeps its leases; reports are sent again
                                      (from DONE only while somebody has yet to apply the last round)
    any    --too few replicas for gather_deadline_s, or replicas that disagree--> FAILED

What keeps replicas equal: nobody applies before CommittedRound, and the coordinator journals it before it sends it;
a replica is told of a round only when it has applied, or is about to apply, the one before. What keeps the corpus
whole: a lease is consumed by the commit that uses its contribution, and by nothing else; and a replica never holds
two leases of one round, so that a report, however late it comes, is of the lease that the coordinator knows. Of a
lease that a contributor did not get through, the rest comes back when the round is over.

Who may take part: the replicas of the config, and as many more as `most_replicas` leaves room for. A member whose
parameters differ from the majority's is told to forget them and to catch up; one that was found at fault too often is
expelled, for as long as `most_faults` says so.

What it knows is in run_state.py; whom and what it won't have in objections.py, when it looks again in
round_deadlines.py, what it tells people in round_summary.py. The transitions stay together, long as they are: each
may end a membership or move the round, and that may do the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from comms import objections
from comms.agreement import (
    Acknowledge,
    Applied,
    CatchUp,
    CommittedRound,
    CoordinatorMessage,
    Entry,
    Finish,
    Holder,
    Join,
    Leave,
    Offer,
    Proposal,
    Refusal,
    Report,
    RoundPlan,
    SnapshotSource,
)
from comms.leases import LeaseBook, without
from comms.round_deadlines import silent_from_s
from comms.round_summary import held, summary_of
from comms.run_state import (
    Action,
    Alive,
    Event,
    Gone,
    Heard,
    Member,
    Phase,
    Record,
    Restarted,
    RunState,
    Send,
    Slept,
    Stopped,
    Summarise,
)

T = TypeVar("T")
_ROUNDS_REMEMBERED = 8
"""Of so many rounds the digest is known when a snapshot of them is offered."""
_MOST_SOURCES = 4


def advance(state: RunState, event: Event, now_s: float) -> tuple[RunState, tuple[Action, ...]]:
    """The state after `event`, and what is to be done, in order."""
    step = _Step(state, now_s)
    step.take(event)
    step.progress()
    return step.state, tuple(step.actions)


class _Step:
    """One call of `advance`: the state in the making, and the actions so far."""

    def __init__(self, state: RunState, now_s: float) -> None:
        self.state = state
        self.now_s = now_s
        self.actions: list[Action] = []

    # ---- what the event says ----

    def take(self, event: Event) -> None:
        match event:
            case Heard(replica, Join() as join):
                self._join(replica, join)
            case Heard(replica, message) if replica in self.state.members:
                self._hear(replica)
                self._HANDLERS[type(message)](self, replica, message)
            case Alive(replica) if replica in self.state.members:
                self._hear(replica)
            case Gone(replica) if replica in self.state.members:
                self._set_member(replica, gone_since_s=self.now_s)
            case Slept(seconds):
                self._postpone(seconds)
            case Restarted():
                self._restart()
            case Stopped(reason) if self.state.phase not in (Phase.DONE, Phase.FAILED):
                self._fail(f"stopped by the operator: {reason}")
            case _:
                pass  # a tick, or somebody who has not joined

    def _join(self, replica: str, join: Join) -> None:
        if reason := objections.to_join(self.state, join):
            self._send(replica, Refusal(reason))
            return
        if self.state.book is None:
            self._set(corpus_digest=join.corpus_digest, book=LeaseBook(join.tokens_per_epoch))
        member = Member(
            join.incarnation, join.address, join.applied_round, join.theta_digest, self.now_s,
            rank_addresses=join.rank_addresses,
        )  # fmt: skip
        self._set(members={**self.state.members, replica: member}, offers=_without(self.state.offers, replica))
        if self.state.damaged.get(replica) == join.theta_digest:
            self._heal(replica, join.theta_digest, "it came back as it was")
            return
        self._set(damaged=_without(self.state.damaged, replica))
        if replica in self.state.reports or (replica in self.state.leases and self.state.phase is not Phase.AGREE):
            self._set(absent=_without(self.state.absent, replica))
        if join.applied_round and join.applied_round == self.state.committed_round:
            self._compare()
        self._place(replica)

    def _report(self, replica: str, report: Report) -> None:
        state = self.state
        is_open = state.phase in (Phase.GATHER, Phase.WORK, Phase.AGREE) and report.round == state.committed_round + 1
        has_part = replica in state.leases and self._is_current(replica)
        if not is_open or not has_part or (state.phase is Phase.AGREE and replica in state.reports):
            return  # of another round, twice, or from damaged parameters: its error feedback keeps what it found
        if reason := objections.to_report(report, state.leases[replica], state.rules):
            self._leave_out(replica, reason)
            return
        if state.phase is Phase.AGREE:
            self._set(late={**state.late, replica: report})
            return
        first = self.now_s if state.first_report_s is None else state.first_report_s
        self._set(
            reports={**state.reports, replica: report}, absent=_without(state.absent, replica), first_report_s=first
        )

    def _acknowledge(self, replica: str, message: Acknowledge) -> None:
        state = self.state
        is_proposed = state.phase is Phase.AGREE and (message.round, message.attempt) == (state.round, state.attempt)
        if is_proposed and self._is_current(replica):
            acknowledged = {**state.acknowledged, replica: message.problems}
            self._set(acknowledged=acknowledged, absent=_without(state.absent, replica))

    def _applied(self, replica: str, message: Applied) -> None:
        member = self.state.members[replica]
        if not member.applied_round <= message.round <= self.state.committed_round:
            return
        is_news = (member.applied_round, member.theta_digest) != (message.round, message.theta_digest)
        if message.theta_digest != self.state.damaged.get(replica):
            self._set(damaged=_without(self.state.damaged, replica))
        self._set_member(replica, applied_round=message.round, theta_digest=message.theta_digest)
        if is_news and self.state.phase is Phase.ENDING:
            self._set(since_s=self.now_s)  # one that catches up is waited for as long as it gets on
        if message.round == self.state.committed_round:
            self._note_applied(replica, message)
        if is_news:  # else its Join has said so, and it was placed then
            self._place(replica)

    def _offer(self, replica: str, message: Offer) -> None:
        if message.round <= self.state.committed_round:
            self._set(offers={**self.state.offers, replica: message})

    def _leave(self, replica: str, message: Leave) -> None:
        reason = message.reason or "left"
        if self.state.phase in (Phase.GATHER, Phase.WORK) and self.state.members[replica].address:
            self._leave_out(replica, reason)  # with its payloads, which nobody has fetched yet
        self._put_out(replica)
        if replica in self.state.leases:
            self._set(absent={**self.state.absent, replica: reason})

    _HANDLERS: Mapping[type, Callable[[_Step, str, Any], None]] = {
        Report: _report,
        Acknowledge: _acknowledge,
        Applied: _applied,
        Leave: _leave,
        Offer: _offer,
    }

    def _postpone(self, seconds: float) -> None:
        """Moves everything that a deadline counts from."""

        def later(moment_s: float | None) -> float | None:
            return None if moment_s is None else moment_s + seconds

        state = self.state
        self._set(
            since_s=state.since_s + seconds, opened_s=state.opened_s + seconds,
            first_report_s=later(state.first_report_s), short_since_s=later(state.short_since_s),
        )  # fmt: skip
        for replica, member in state.members.items():
            last_heard_s = member.last_heard_s + seconds
            self._set_member(replica, last_heard_s=last_heard_s, gone_since_s=later(member.gone_since_s))

    def _restart(self) -> None:
        """Everybody who was there is gathered again. Nobody has applied the open round, so it starts over, with the
        same leases: who still has its report sends it again, who has not does the work again. Attempts count on, or
        an acknowledgement from before could pass for one of a new proposal.
        """
        if self.state.phase is Phase.DONE and not self.state.behind:
            return
        state = self.state
        gone = {replica for replica, member in state.members.items() if member.gone_since_s is not None}
        gathering = {*state.members, *state.leases, *(state.gathering if state.phase is Phase.GATHER else ())} - gone
        if state.phase is Phase.GATHER and not state.gathering:
            gathering = set()  # still everybody named in the config
        self._set(
            phase=Phase.GATHER, failure="", since_s=self.now_s, gathering=tuple(sorted(gathering)), members={},
            reports={}, set_aside={}, late={}, first_report_s=None, manifest=(), acknowledged={}, absent={},
            short_since_s=None,
        )  # fmt: skip

    # ---- where a member stands ----

    def _place(self, replica: str) -> None:
        """Tells a member what it needs to take part in, or to watch, the open round."""
        state = self.state
        if replica not in state.members:
            return  # put out a moment ago: its parameters are damaged
        if not self._is_current(replica):
            self._send(replica, self._catch_up(replica))
            return
        match state.phase:
            case Phase.DONE | Phase.FAILED:
                self._send(replica, Finish(state.failure))
            case Phase.WORK if replica not in state.leases and self._is_young():
                self._admit(replica)  # later on it watches
            case Phase.AGREE if replica in state.reports and state.members[replica].planned_round < state.round:
                self._plan(replica)
                self._send(replica, self._proposal())
            case _:
                pass  # it watches, and will be told of the commit

    def _catch_up(self, replica: str) -> CatchUp:
        """What a member that is behind has to do: redo the rounds since, or, far behind, begin with a snapshot."""
        state = self.state
        stands_at = state.members[replica].applied_round
        is_far = replica in state.damaged or state.committed_round - stands_at > state.rules.most_replayed_rounds
        snapshots = self._snapshots(replica, stands_at) if is_far else ()
        return CatchUp(state.committed_round, snapshots, state.damaged.get(replica, ""))

    def _snapshots(self, replica: str, after_round: int) -> tuple[SnapshotSource, ...]:
        """Snapshots of what the majority held after a round, newest first, and of those the most held first."""
        state, holders = self.state, dict[Offer, list[Holder]]()
        for holder, offer in sorted(state.offers.items()):
            sound = state.agreed.get(offer.round) == offer.theta_digest
            if sound and offer.round > after_round and holder in self._living() - {replica}:
                holders.setdefault(offer, []).append(Holder(holder, state.members[holder].address))
        best = sorted(holders, key=lambda offer: (-offer.round, -len(holders[offer]), offer.index_digest))
        return tuple(SnapshotSource(offer, tuple(holders[offer])) for offer in best[:_MOST_SOURCES])

    def _admit(self, replica: str) -> None:
        if self.state.book is None:
            raise AssertionError("a member was admitted before the corpus was known")
        book, lease = self.state.book.grant(self.state.rules.lease_tokens)
        absent = _without(self.state.absent, replica)
        self._set(book=book, leases={**self.state.leases, replica: lease}, absent=absent)

    def _is_young(self) -> bool:
        """Whether those in the open round would lose less by waiting for one more than that one by watching.

        If all work alike, each of n would wait as long as the round is old; the newcomer would watch for the rest.
        """
        state = self.state
        age_s = self.now_s - state.opened_s
        return not state.reports and (not state.round_s or age_s * len(state.leases) <= state.round_s - age_s)

    def _plan(self, replica: str) -> None:
        """Tells a member of its lease, once over each stream."""
        if self.state.members[replica].planned_round < self.state.round:
            self._set_member(replica, planned_round=self.state.round)
            self._send(replica, RoundPlan(self.state.round, self.state.leases[replica]))

    # ---- whether the round can move ----

    def progress(self) -> None:
        self._settle_disagreement()
        match self.state.phase:
            case Phase.GATHER:
                self._progress_gather()
            case Phase.WORK:
                self._progress_work()
            case Phase.AGREE:
                self._progress_agree()
            case Phase.ENDING:
                self._progress_ending()
            case _:
                pass

    def _progress_gather(self) -> None:
        rules = self.state.rules
        ready = sorted(r for r in self._living() if self._is_current(r))
        everybody = set(self.state.gathering or rules.replicas) <= set(ready)
        if not everybody and not self._elapsed(rules.gather_deadline_s):
            return
        if self.state.committed_round == rules.rounds:
            self._set(phase=Phase.ENDING, since_s=self.now_s)
            self.progress()
        elif len(ready) >= rules.min_replicas:
            self._open(ready)
        elif self._elapsed(rules.gather_deadline_s):
            self._fail(self._too_few(len(ready)))

    def _progress_work(self) -> None:
        rules = self.state.rules
        if self._lacks_replicas():
            for replica in sorted(self._living() - set(self.state.leases)):
                if self._is_current(replica):
                    self._admit(replica)
        for replica in sorted(set(self.state.members) & set(self.state.leases)):
            if self._is_current(replica):
                self._plan(replica)
        missing = self._awaited() - set(self.state.reports)
        if self._elapsed(rules.work_deadline_s):
            for replica in sorted(missing):
                self._leave_out(replica, f"no report within exchange.work_deadline_s = {rules.work_deadline_s:g} s")
            missing = set()
        if len(self.state.reports) >= rules.min_replicas:
            deadline_s = (self.state.first_report_s or 0.0) + rules.publish_deadline_s
            if not missing or self.now_s >= deadline_s:
                for replica in sorted(missing):
                    self._leave_out(replica, f"no report within {rules.publish_deadline_s:g} s of the first")
                self._leave_out_misfits()
                if len(self.state.reports) >= rules.min_replicas:
                    self._propose()
                    return
        if self._mind_shortage(self._present(), rules.min_replicas) and self.state.set_aside:
            self._try_again()

    def _progress_agree(self) -> None:
        state, rules = self.state, self.state.rules
        awaited = self._awaited()
        if self._elapsed(rules.fetch_deadline_s):
            for replica in sorted(awaited - set(state.acknowledged)):
                self._stop_waiting_for(replica, f"did not fetch the round within {rules.fetch_deadline_s:g} s")
            awaited &= set(state.acknowledged)
        if awaited - set(state.acknowledged):
            return
        if not awaited:
            if self._mind_shortage(0, 1):
                self._settle_desertion()
        elif any(state.acknowledged[replica] for replica in awaited):
            self._settle_problems(awaited)
        else:
            self._commit()

    def _progress_ending(self) -> None:
        waiting = {r for r in self._living() if not self._is_current(r)}
        if not waiting or self._elapsed(self.state.rules.ending_deadline_s):
            self._summarise()
            self._set(phase=Phase.DONE, since_s=self.now_s)
            for replica in sorted(self.state.members):
                if self._is_current(replica):  # the others, when they have caught up: see _place
                    self._send(replica, Finish())

    def _mind_shortage(self, present: int, needed: int) -> bool:
        """Ends the run when the open round has lacked replicas for too long. True when it is time to try again."""
        if present >= needed:
            self._set(short_since_s=None)
            return False
        if self.state.short_since_s is None:
            self._set(short_since_s=self.now_s)
        elif self.now_s >= self.state.short_since_s + self.state.rules.gather_deadline_s:
            self._fail(self._too_few(present))
            return False
        return self._elapsed(self.state.rules.fetch_deadline_s)

    # ---- moving ----

    def _open(self, roster: list[str]) -> None:
        """Opens the round after the committed one, or, after a restart, opens it again, with its leases and reports."""
        state = self.state
        number = state.committed_round + 1
        if number != state.round:
            book = state.book
            for lease in state.leases.values():
                book = book.give_back(lease) if book is not None else None
            self._set(round=number, book=book, leases={}, reports={}, set_aside={}, late={}, attempt=0)
        first_report_s = self.now_s if self.state.reports else None
        self._set(
            phase=Phase.WORK, since_s=self.now_s, opened_s=self.now_s, first_report_s=first_report_s,
            manifest=(), acknowledged={}, absent={}, short_since_s=None,
        )  # fmt: skip
        for replica in roster:
            if replica not in self.state.leases:
                self._admit(replica)
        gone = {replica for replica, member in self.state.members.items() if member.gone_since_s is not None}
        for replica in sorted(gone - {*self.state.rules.replicas, *self.state.leases, *self._living()}):
            self._put_out(replica)  # somebody who joined and went leaves room for another
        self.progress()

    def _propose(self) -> None:
        """Puts the reported payloads to the vote, replicas in order of their names, fragments as they report them."""
        reports = self.state.reports
        manifest = tuple(
            Entry(replica, payload.fragment, payload.digest, payload.num_bytes, reports[replica].tokens)
            for replica in sorted(reports)
            for payload in reports[replica].payloads
        )
        attempt = self.state.attempt + 1
        self._set(phase=Phase.AGREE, since_s=self.now_s, attempt=attempt, manifest=manifest, acknowledged={})
        for replica in sorted(set(reports) & set(self.state.members)):
            if replica not in self.state.absent and self._is_current(replica):
                self._send(replica, self._proposal())

    def _try_again(self) -> None:
        """Proposes to all once more, also what was refused: the round lacks replicas, a link may have come back."""
        reports = {**self.state.set_aside, **self.state.reports}
        if len(reports) < self.state.rules.min_replicas:
            return
        self._set(reports=reports, absent=_without_all(self.state.absent, reports), set_aside={})
        self._propose()

    def _propose_again(self) -> None:
        """After somebody was left out of a proposal; whoever was late for that one is in time for the next."""
        late = {r: report for r, report in self.state.late.items() if r not in self.state.set_aside}
        absent = _without_all(self.state.absent, late)
        self._set(reports={**late, **self.state.reports}, absent=absent, late={})
        self._leave_out_misfits()
        if len(self.state.reports) >= self.state.rules.min_replicas:
            self._propose()
        else:
            self._set(phase=Phase.WORK, since_s=self.now_s)
            self.progress()

    def _settle_desertion(self) -> None:
        """All who acknowledged, or would have to, are gone: with late ones, or those who watched, the round goes on."""
        state = self.state
        if (set(state.reports) | set(state.late)) & self._living():
            self._set(absent=_without_all(state.absent, state.reports))
            self._propose_again()
        elif any(self._is_current(replica) for replica in self._living() - set(state.leases)):
            self._set(
                phase=Phase.WORK, since_s=self.now_s, reports={}, first_report_s=None,
                set_aside={**state.set_aside, **state.reports},
            )  # fmt: skip
            self.progress()

    def _settle_problems(self, awaited: set[str]) -> None:
        """Payloads that half of the members refuse leave the round; else those who can't get them do."""
        state = self.state
        owners = {entry.digest: entry.replica for entry in state.manifest}
        complaints = Counter[str]()
        reasons: dict[str, str] = {}
        for replica in sorted(awaited):
            accused = {owners[p.digest]: p.reason for p in state.acknowledged[replica] if p.digest in owners}
            complaints.update(accused.keys())
            reasons |= accused
        guilty = {
            owner for owner, count in complaints.items() if count * 2 >= len(awaited) or owner not in self._living()
        }
        nobody_is_content = all(state.acknowledged[replica] for replica in awaited)
        too_few = len(set(state.reports) - guilty) < state.rules.min_replicas
        divided = complaints and (too_few or (nobody_is_content and not guilty))
        if divided:  # whoever is refused most goes first; the rest may then agree
            guilty = {max(complaints, key=lambda owner: (complaints[owner], owner))}
        for replica in sorted(awaited - guilty):
            lacking = [p for p in state.acknowledged[replica] if owners.get(p.digest) not in guilty]
            if lacking and not divided:
                self._stop_waiting_for(replica, f"could not get what the others got: {lacking[0].reason}")
        for replica in sorted(guilty):
            self._set(set_aside={**self.state.set_aside, replica: state.reports[replica]})
            self._leave_out(replica, reasons[replica])
            others = [state.acknowledged[other] for other in awaited - {replica}]
            accusers = [
                problems for problems in others if any(p.broken and owners.get(p.digest) == replica for p in problems)
            ]
            if 2 * len(accusers) > len(others):
                self._find_at_fault(replica, reasons[replica])
        if guilty:
            self._propose_again()
        else:
            self.progress()

    def _commit(self) -> None:
        state = self.state
        trained = {r: without(state.leases[r], report.unused) for r, report in state.reports.items()}
        committed = CommittedRound(state.round, state.manifest, dict(sorted(trained.items())))
        following = sorted(
            r for r in self._living() if self._is_current(r) and (r in state.acknowledged or self._watches(r))
        )
        rests = {r: report.unused for r, report in state.reports.items() if report.unused}
        self._summarise()
        self._set(
            committed=committed, committed_reports=state.reports, applied={}, round_s=self.now_s - state.opened_s,
            committed_absent={r: "away" for r in state.leases if r not in state.reports} | dict(state.absent),
            leases=_without_all(state.leases, state.reports) | rests,  # come back in _open
            tokens=state.tokens + sum(report.tokens for report in state.reports.values()),
        )  # fmt: skip
        self.actions.append(Record(committed))
        for replica in sorted(state.members):  # also to the silent: a stream outlives a pause of its replica
            if state.members[replica].applied_round == committed.round - 1:
                self._send(replica, replace(committed, holders=self._holders()))
        if committed.round == state.rules.rounds:
            self._set(phase=Phase.ENDING, since_s=self.now_s)
        else:
            self._open(following)

    def _watches(self, replica: str) -> bool:
        """A member that has no part in the open round, and will hold its outcome like the others."""
        state = self.state
        return replica not in state.leases and replica not in state.absent

    def _note_applied(self, replica: str, message: Applied) -> None:
        """Writes down what a replica made of the committed round."""
        earlier = self.state.applied.get(replica)
        if earlier and not message.validation_targets:
            message = replace(earlier, theta_digest=message.theta_digest)
        self._set(applied={**self.state.applied, replica: message})
        self._compare()
        expected = {r for r in self._living() if r in self.state.committed_reports}
        if expected <= set(self.state.applied):
            self._summarise()

    def _compare(self) -> None:
        """Looks at what the members hold after the committed round, now that one more of them has said so."""
        self._remember_digest()
        self._settle_disagreement()

    def _settle_disagreement(self) -> None:
        """Compares what the members hold after the committed round: a minority is put out, a tie ends the run."""
        state, number = self.state, self.state.committed_round
        if state.phase in (Phase.GATHER, Phase.DONE, Phase.FAILED):
            return
        votes = {r: m.theta_digest for r, m in sorted(state.members.items()) if m.applied_round == number}
        counts = Counter(votes.values())
        if len(counts) < 2:
            return
        (majority, most), (_, second) = counts.most_common(2)
        too_late = state.phase is Phase.ENDING and self._elapsed(state.rules.ending_deadline_s)
        undecided = set[str]() if too_late else self._living() - set(votes)
        if undecided and most * 2 <= len(votes) + len(undecided):
            return
        if most == second:
            sides = ", ".join(f"{replica} {theta_digest[:12]}" for replica, theta_digest in votes.items())
            self._fail(f"the replicas disagree after round {number} and none is in the majority: {sides}")
            return
        damaged = {replica: theta_digest for replica, theta_digest in votes.items() if theta_digest != majority}
        for replica, theta_digest in damaged.items():
            self._heal(replica, theta_digest, f"it held {theta_digest[:12]} after round {number}, not {majority[:12]}")
        if self.state.phase is Phase.AGREE and any(entry.replica in damaged for entry in self.state.manifest):
            self._propose_again()

    def _heal(self, replica: str, theta_digest: str, reason: str) -> None:
        """Lets a replica forget its parameters and catch up; what it reported was made from them, and goes."""
        is_known = self.state.damaged.get(replica) == theta_digest  # its stream broke before it heard of it
        self._set(
            damaged={**self.state.damaged, replica: theta_digest},
            set_aside=_without(self.state.set_aside, replica),
            late=_without(self.state.late, replica),
        )
        self._leave_out(replica, "its parameters differ from the others'")
        self._set_member(replica, applied_round=0, planned_round=0)
        if not is_known:
            self._find_at_fault(replica, reason)
        if replica in self.state.members:
            self._send(replica, self._catch_up(replica))

    def _find_at_fault(self, replica: str, reason: str) -> None:
        """Writes down what a replica did; at most_faults it is expelled."""
        self._set(faults={**self.state.faults, replica: (*self.state.faults.get(replica, ()), reason)})
        if objections.is_expelled(self.state, replica):
            self._send(replica, Refusal(objections.expulsion(self.state, replica)))
            self._leave_out(replica, f"expelled: {reason}")
            self._put_out(replica)

    def _put_out(self, replica: str) -> None:
        """Ends a membership; what the replica has reported and was not set aside stays in the round."""
        state = self.state
        self._set(
            members=_without(state.members, replica), set_aside=_without(state.set_aside, replica),
            late=_without(state.late, replica), offers=_without(state.offers, replica),
            damaged=_without(state.damaged, replica),
        )  # fmt: skip

    def _leave_out_misfits(self) -> None:
        """Leaves out those whose fragments are not the ones that most report."""
        reported = {r: tuple(sorted(p.fragment for p in report.payloads)) for r, report in self.state.reports.items()}
        if not reported:
            return
        expected = Counter(reported.values()).most_common(1)[0][0]
        for replica, fragments in sorted(reported.items()):
            if fragments != expected:
                self._leave_out(replica, f"its fragments {list(fragments)} are not those of the other replicas")

    def _leave_out(self, replica: str, reason: str) -> None:
        """Takes a replica and what it reported out of the open round. Its lease comes back when the round is over."""
        if replica in self.state.leases:
            absent = {**self.state.absent, replica: reason}
            self._set(absent=absent, reports=_without(self.state.reports, replica))

    def _stop_waiting_for(self, replica: str, reason: str) -> None:
        """Goes on without a replica's acknowledgement; its contribution, which the others hold, stays in the round."""
        acknowledged = _without(self.state.acknowledged, replica)
        self._set(absent={**self.state.absent, replica: reason}, acknowledged=acknowledged)

    def _fail(self, reason: str) -> None:
        self._summarise()
        self._set(phase=Phase.FAILED, failure=reason)
        for replica in sorted(self.state.members):
            self._send(replica, Finish(reason))

    def _summarise(self) -> None:
        """Writes the line of the committed round, once: when all have applied it, or the next one is committed."""
        state = self.state
        if state.committed is None or state.summarised_round >= state.committed.round:
            return
        self._set(summarised_round=state.committed.round)
        self.actions.append(Summarise(summary_of(state, state.committed)))

    def _remember_digest(self) -> None:
        """Keeps what the majority holds after the committed round, which says of a snapshot whether it is sound."""
        number = self.state.committed_round
        counts = Counter(held(self.state).values())
        votes = max(counts.total(), len(self.state.committed_reports))
        held_by_most = [digest for digest, count in counts.items() if 2 * count > votes]
        offered = {offer.round for offer in self.state.offers.values()}
        kept = {n: d for n, d in self.state.agreed.items() if n in offered or n > number - _ROUNDS_REMEMBERED}
        self._set(agreed=kept | dict.fromkeys([number] if held_by_most else [], *held_by_most))

    # ---- small questions ----

    def _awaited(self) -> set[str]:
        """Members that the open round waits for: on its roster (proposed: in its manifest), alive, not given up."""
        roster = self.state.reports if self.state.phase is Phase.AGREE else self.state.leases
        return {r for r in roster if r not in self.state.absent and r in self._living()}

    def _present(self) -> int:
        """How many contributions the open round has, or waits for."""
        return len(self._awaited() | set(self.state.reports))

    def _lacks_replicas(self) -> bool:
        return self._present() < self.state.rules.min_replicas

    def _living(self) -> set[str]:
        return {r for r, m in self.state.members.items() if silent_from_s(m, self.state.rules) > self.now_s}

    def _is_current(self, replica: str) -> bool:
        return self.state.members[replica].applied_round == self.state.committed_round

    def _elapsed(self, deadline_s: float) -> bool:
        return self.now_s >= self.state.since_s + deadline_s

    def _too_few(self, present: int) -> str:
        rules = self.state.rules
        without = "".join(f"; without {r}: {why}" for r, why in sorted(self.state.absent.items()))
        return (
            f"round {self.state.round} has {present} replicas after exchange.gather_deadline_s = "
            f"{rules.gather_deadline_s:g} s: start more, or lower exchange.min_replicas = {rules.min_replicas}{without}"
        )

    def _holders(self) -> tuple[Holder, ...]:
        return tuple(holder for r, m in sorted(self.state.members.items()) for holder in m.holders(r))

    def _proposal(self) -> Proposal:
        return Proposal(self.state.round, self.state.attempt, self.state.manifest, self._holders())

    def _hear(self, replica: str) -> None:
        self._set_member(replica, last_heard_s=self.now_s)

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def _set_member(self, replica: str, **changes: Any) -> None:
        self._set(members={**self.state.members, replica: replace(self.state.members[replica], **changes)})

    def _send(self, replica: str, message: CoordinatorMessage) -> None:
        self.actions.append(Send(replica, message))


def _without_all(mapping: Mapping[str, T], replicas: Container[str]) -> dict[str, T]:
    return {key: value for key, value in mapping.items() if key not in replicas}


def _without(mapping: Mapping[str, T], replica: str) -> dict[str, T]:
    return {key: value for key, value in mapping.items() if key != replica}
