"""When things happened in a round: the last word of each kind counts, and old rounds are forgotten."""

from comms.agreement import Acknowledge, Applied, Heartbeat, Report
from comms.marks import MOST_ROUNDS, Marks, RoundMarks


def test_a_rounds_marks_are_those_of_its_own_messages() -> None:
    marks = Marks()
    marks.opened(3, 100.0)
    marks.opened(3, 101.0)  # the coordinator says it again; the round began when it began
    marks.heard("a", Report(3, (), 1, 1.0, {}), 107.0)
    marks.heard("a", Acknowledge(3, 1, ()), 108.0)
    marks.heard("a", Acknowledge(3, 2, ()), 109.0)
    marks.heard("a", Heartbeat(), 110.0)
    marks.committed(3, 111.0)
    marks.opened(4, 111.0)
    marks.heard("a", Applied(3, "ab"), 112.0)
    assert marks.of(3) == RoundMarks(100.0, 111.0, {"a": 107.0}, {"a": 109.0}, {"a": 112.0})
    assert marks.of(4) == RoundMarks(opened_at_s=111.0)
    assert marks.of(5) == RoundMarks()


def test_whatever_rounds_members_name_few_are_remembered() -> None:
    marks = Marks()
    for number in range(1, 1000):
        marks.heard("a", Report(10_000 + number, (), 1, 1.0, {}), 0.0)
        marks.opened(number, 1.0)
    assert [number for number in range(20_000) if marks.of(number) != RoundMarks()] == list(
        range(1000 - MOST_ROUNDS, 1000)
    )
