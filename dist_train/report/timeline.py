"""When each replica did what in a round.

A replica tells how long each phase took, the coordinator when it heard of the phases' ends (`comms.marks`):

    opened | compute  encode  publish | reported ...wait... | fetch  decode | acknowledged ..wait.. | apply validate |

So the phases of a group end where its mark is, one before the other, and what is between the groups was waiting. The
marks include a message's way to the coordinator. A round without marks (the coordinator was restarted in it) shows
the phases one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dist_train.report.contents import TimelinePart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dist_train.report.metrics import RoundRow

Span = tuple[str, float, float]
"""Phase, its start from the opening of the round, its seconds."""

WAIT = "wait"
WORK, EXCHANGE, AFTER = ("compute", "encode", "publish"), ("fetch", "decode"), ("apply", "validate")
PHASES = (*WORK, WAIT, *EXCHANGE, *AFTER)


def timeline(rows: Iterable[RoundRow]) -> tuple[TimelinePart, ...]:
    """What every replica that told did in every round."""
    return tuple(
        TimelinePart(round=row.round, replica=replica, spans=tuple(spans_of(row, replica)))
        for row in rows
        for replica in sorted(row.phase_s)
    )


def spans_of(row: RoundRow, replica: str) -> list[Span]:
    """The spans of one replica in one round, in the order in which they began."""
    phase_s = row.phase_s[replica]
    others = tuple(sorted(phase for phase in phase_s if phase not in PHASES))
    groups = (
        (row.reported_at_s, (*others, *WORK)),
        (row.acknowledged_at_s, EXCHANGE),
        (row.applied_at_s, AFTER),
    )
    if row.opened_at_s is None or any(replica not in marks for marks, _ in groups):
        return _one_after_the_other(phase_s, (*others, *PHASES), 0.0)
    spans: list[Span] = []
    for marks, phases in groups:
        end_s = marks[replica] - row.opened_at_s
        start_s = end_s - sum(phase_s.get(phase, 0.0) for phase in phases)
        if spans and (waited_s := start_s - _end_s(spans)) > 0:
            spans.append((WAIT, _end_s(spans), waited_s))
        spans += _one_after_the_other(phase_s, phases, start_s)
    return [(phase, round(start_s, 6), round(seconds, 6)) for phase, start_s, seconds in spans]


def _one_after_the_other(phase_s: Mapping[str, float], phases: Sequence[str], start_s: float) -> list[Span]:
    spans = []
    for phase in phases:
        if phase in phase_s:
            spans.append((phase, start_s, phase_s[phase]))
            start_s += phase_s[phase]
    return spans


def _end_s(spans: Sequence[Span]) -> float:
    _, start_s, seconds = spans[-1]
    return start_s + seconds
