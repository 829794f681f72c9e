"""Golden: the timeline of a round, worked out by hand."""

import pytest

from dist_train.report.metrics import RoundRow
from dist_train.report.timeline import spans_of, timeline

# Opened at 100. a: computes 2 to 6, encodes to 7, reports at 7. Fetches 9 to 10, decodes to 10.5, acknowledges.
# Applies 11 to 11.25, validates to 12.
PHASES = {"compute": 4.0, "encode": 1.0, "wait": 2.5, "fetch": 1.0, "decode": 0.5, "apply": 0.25, "validate": 0.75}
ROW = RoundRow(
    round=3,
    phase_s={"a": PHASES},
    opened_at_s=100.0,
    reported_at_s={"a": 107.0},
    acknowledged_at_s={"a": 110.5},
    applied_at_s={"a": 112.0},
)


def test_phases_end_where_the_coordinator_heard_of_them_and_the_rest_is_waiting() -> None:
    assert spans_of(ROW, "a") == [
        ("compute", 2.0, 4.0),
        ("encode", 6.0, 1.0),
        ("wait", 7.0, 2.0),
        ("fetch", 9.0, 1.0),
        ("decode", 10.0, 0.5),
        ("wait", 10.5, 0.5),
        ("apply", 11.0, 0.25),
        ("validate", 11.25, 0.75),
    ]


def test_without_marks_the_phases_stand_one_after_the_other() -> None:
    spans = spans_of(ROW.model_copy(update={"acknowledged_at_s": {}}), "a")
    assert spans[0] == ("compute", 0.0, 4.0)
    ends = [start + seconds for _, start, seconds in spans]
    assert [start for _, start, _ in spans[1:]] == pytest.approx(ends[:-1])
    assert {phase: seconds for phase, _, seconds in spans} == PHASES


def test_a_phase_that_we_do_not_know_is_shown() -> None:
    row = ROW.model_copy(update={"phase_s": {"a": PHASES | {"dream": 1.0}}})
    assert ("dream", 1.0, 1.0) in spans_of(row, "a")


def test_every_replica_that_told_is_in_it() -> None:
    row = ROW.model_copy(update={"phase_s": {"b": PHASES, "a": PHASES}})
    assert [(part.round, part.replica) for part in timeline([row])] == [(3, "a"), (3, "b")]
