"""When the round machine must look at the clock again: everything in its state that waits, and how long for."""

from __future__ import annotations

import math

from comms.run_state import Member, Phase, RoundRules, RunState


def next_deadline_s(state: RunState, now_s: float) -> float:
    """When `Ticked` must be fed next, `advance` having been called at `now_s`; infinity when nothing is waited for."""
    rules = state.rules
    if state.phase in (Phase.DONE, Phase.FAILED):
        return math.inf
    moments = [silent_from_s(member, rules) for member in state.members.values()]
    if state.phase is Phase.GATHER:
        moments.append(state.since_s + rules.gather_deadline_s)
    if state.short_since_s is not None:
        moments.append(state.short_since_s + rules.gather_deadline_s)
    if state.phase is Phase.WORK and state.first_report_s is not None:
        moments.append(state.first_report_s + rules.publish_deadline_s)
    if state.phase is Phase.WORK:
        moments.append(state.since_s + rules.work_deadline_s)
    if state.phase is Phase.AGREE or (state.phase is Phase.WORK and state.set_aside):
        moments.append(state.since_s + rules.fetch_deadline_s)
    if state.phase is Phase.ENDING:
        moments.append(state.since_s + rules.ending_deadline_s)
    return min((moment for moment in moments if moment > now_s), default=math.inf)


def silent_from_s(member: Member, rules: RoundRules) -> float:
    """From when on a member counts as dead, if nothing more is heard of it, or its stream is not opened anew."""
    silent_s = member.last_heard_s + rules.liveness_deadline_s
    return silent_s if member.gone_since_s is None else min(silent_s, member.gone_since_s + rules.reconnect_deadline_s)
