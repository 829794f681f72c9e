"""What a committed round was, for people: the line of metrics.jsonl."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from comms.agreement import CommittedRound, RoundSummary
from comms.run_state import RunState


def summary_of(state: RunState, committed: CommittedRound) -> RoundSummary:
    """The line of the committed round, as far as the members have told what became of it."""
    reports, applied = state.committed_reports, state.applied
    counts = Counter(held(state).values())
    tokens = sum(report.tokens for report in reports.values())
    losses = [report.loss * report.tokens for report in reports.values()]
    targets = sum(message.validation_targets for message in applied.values())
    validation = sum(message.validation_loss_sum for message in applied.values()) / targets if targets else None
    phases = {
        replica: {**report.phase_s, **(applied[replica].phase_s if replica in applied else {})}
        for replica, report in reports.items()
    }
    return RoundSummary(
        round=committed.round,
        contributors=committed.contributors,
        theta_digest=counts.most_common(1)[0][0] if counts else "",
        agreed=len(counts) == 1,
        loss=sum(losses) / tokens if tokens else fmean(report.loss for report in reports.values()),
        validation_loss=validation,
        tokens={replica: report.tokens for replica, report in reports.items()},
        phase_s=phases,
        health={replica: message.health for replica, message in applied.items() if message.health},
        payload_bytes={r: sum(p.num_bytes for p in report.payloads) for r, report in reports.items()},
        absent=tuple({"replica": r, "reason": why} for r, why in sorted(state.committed_absent.items())),
        round_s=state.round_s,
    )


def held(state: RunState) -> dict[str, str]:
    """Digest of what each replica holds after the committed round, or held when it was last heard of."""
    number = state.committed_round
    present = {r: member.theta_digest for r, member in state.members.items() if member.applied_round == number}
    return {r: message.theta_digest for r, message in state.applied.items()} | present
