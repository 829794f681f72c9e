"""Why the round machine won't have a replica, or its report: each a line for a person, with the rule and the remedy."""

from __future__ import annotations

import math

from comms.agreement import Join, Report
from comms.leases import Lease, without
from comms.run_state import RoundRules, RunState


def to_join(state: RunState, join: Join) -> str:
    """Why this replica can't take part, or nothing."""
    rules, replica = state.rules, join.replica
    if is_expelled(state, replica):
        return expulsion(state, replica)
    if replica not in state.known and len(state.known) >= rules.most_replicas:
        return (
            f"replica {replica!r} is none of this run's replicas ({', '.join(sorted(state.known))}), and "
            f"exchange.most_replicas = {rules.most_replicas} leaves no room for another"
        )
    if join.config_digest != rules.config_digest:
        return (
            f"replica {replica!r} has config {join.config_digest[:12]}, the run has {rules.config_digest[:12]}: "
            "start it with the run's config.toml"
        )
    if join.tokens_per_epoch < 1:
        return f"replica {replica!r} has an empty corpus"
    if state.corpus_digest and join.corpus_digest != state.corpus_digest:
        return (
            f"replica {replica!r} has corpus {join.corpus_digest[:12]}, the run has {state.corpus_digest[:12]}: "
            "the documents, the tokenizer (or, for python-stdlib, the Python version) differ"
        )
    if join.applied_round > state.committed_round:
        return (
            f"replica {replica!r} stands at round {join.applied_round}, the run has committed "
            f"{state.committed_round}: its checkpoints are of another run, or the coordinator's journal is older"
        )
    others = [m for r, m in state.members.items() if r not in (replica, *state.damaged)]
    starts = [member.theta_digest for member in others if member.applied_round == 0]
    if join.applied_round == 0 and starts and join.theta_digest != starts[0]:
        return (
            f"replica {replica!r} begins with other parameters than the rest ({join.theta_digest[:12]} against "
            f"{starts[0][:12]}): the versions of torch or transformers differ"
        )
    return ""


def to_report(report: Report, lease: Lease, rules: RoundRules) -> str:
    """Why this report can't be part of any manifest, or nothing."""
    fragments = [payload.fragment for payload in report.payloads]
    if not math.isfinite(report.loss):
        return f"its loss is {report.loss}"
    if not fragments or len(set(fragments)) != len(fragments):
        return f"its fragments are {fragments}"
    if (num_bytes := sum(payload.num_bytes for payload in report.payloads)) > rules.most_payload_bytes:
        return f"its payloads are {num_bytes} bytes, more than exchange.most_payload_bytes = {rules.most_payload_bytes}"
    if report.tokens > 2 * rules.lease_tokens:  # a lease's last document may reach beyond it, but not so far
        return f"it claims {report.tokens} tokens of a lease of {rules.lease_tokens}: that is too much weight"
    try:
        trained = without(lease, report.unused)
    except ValueError as error:
        return f"what it has left of its lease is none of it: {error}"
    return "" if trained else "it has trained on nothing of its lease"


def is_expelled(state: RunState, replica: str) -> bool:
    """Whether it was found at fault too often."""
    return len(state.faults.get(replica, ())) >= state.rules.most_faults


def expulsion(state: RunState, replica: str) -> str:
    """What an expelled replica is told."""
    faults = state.faults[replica]
    return (
        f"replica {replica!r} is expelled after {len(faults)} faults (exchange.most_faults = "
        f"{state.rules.most_faults}), the last: {faults[-1]}. Mend its machine; it may join by another name"
    )
