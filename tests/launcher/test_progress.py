"""The live view and the log line, from values alone."""

import pytest
from rich.console import Console

from dist_train.report.metrics import Absence, RoundRow
from launcher.progress import (
    MemberProgress,
    Progress,
    RunStatus,
    render_live,
    round_line,
    sparkline,
    tokens_per_s,
    waited_for,
)
from launcher.status import run_status
from protos import round_pb2

ROW = RoundRow(
    round=3,
    contributors=("a", "b"),
    loss=2.71,
    validation_loss=2.8,
    tokens={"a": 18_300, "b": 18_300},
    payload_bytes={"a": 20_600, "b": 20_600},
    round_s=2.0,
)


def members(*states: str) -> tuple[MemberProgress, ...]:
    return tuple(MemberProgress(name, state, 2) for name, state in zip("abc", states, strict=False))


def rendered(progress: Progress) -> str:
    console = Console(width=100, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(render_live(progress))
    return capture.get()


def test_a_round_is_one_line() -> None:
    progress = Progress("demo", 12, ("a", "b"), (ROW,))
    line = "round 3/12  loss 2.710  val 2.800  18.3k tok/s  41.2 kB payloads  eta 18s"
    assert round_line(progress, ROW) == line


def test_the_line_says_what_went_wrong() -> None:
    row = ROW.model_copy(update={"contributors": ("a",), "agreed": False, "validation_loss": None})
    line = round_line(Progress("demo", 12, ("a", "b"), (row,)), row)
    assert "without b" in line
    assert "digests DIFFER" in line
    assert "val" not in line


def test_the_estimate_is_the_median_from_commit_to_commit() -> None:
    # 10 s a round, but for the night between two launches.
    at_s = (0.0, 10.0, 20.0, 40_000.0, 40_010.0)
    rounds = tuple(ROW.model_copy(update={"round": n, "committed_at_s": s}) for n, s in enumerate(at_s, start=1))
    assert Progress("demo", 12, ("a", "b"), rounds).eta_s == pytest.approx(70.0)


def test_nothing_is_estimated_before_the_first_round() -> None:
    assert Progress("demo", 12).eta_s is None
    assert tokens_per_s(RoundRow(round=1)) is None


def test_the_view_shows_rounds_and_members() -> None:
    status = RunStatus("work", 4, members("reported", "working"))
    text = rendered(Progress("demo", 12, ("a", "b"), (ROW,), status))
    for fact in ("demo", "round 3/12", "2.710", "2.800", "18.3k tok/s", "41.2 kB", "working", "eta 18s"):
        assert fact in text
    assert "round 4: work, waiting for b" in text


def test_the_view_shows_who_was_slow_in_the_last_round_and_who_was_left_out() -> None:
    row = ROW.model_copy(
        update={
            "phase_s": {"a": {"compute": 12.0, "wait": 31.0}, "b": {"compute": 43.0}},
            "absent": (Absence(replica="c", reason="silent"),),
        }
    )
    lines = rendered(Progress("demo", 12, ("a", "b"), (row,), RunStatus("work", 4, members("working", "working"))))
    shown = {line.split()[0]: line.split()[-3:] for line in lines.splitlines() if "working" in line}
    assert shown == {"a": ["12s", "31s", "-"], "b": ["43s", "-", "-"]}
    assert "in the last round, without c" in lines


def test_the_view_before_the_first_round() -> None:
    text = rendered(Progress("demo", 12, status=RunStatus("gather", 1).naming(("a", "b"), ended=("b",))))
    assert "no round committed yet" in text
    assert "waiting for a" in text
    assert "ended" in text


@pytest.mark.parametrize(
    ("phase", "states", "expected"),
    [
        ("work", ("working", "working"), ()),
        ("work", ("reported", "working", "catching-up"), ("b",)),
        ("agree", ("acknowledged", "reported", "observing"), ("b",)),
        ("gather", ("observing", "starting"), ("b",)),
        ("work", ("working", "silent"), ("b",)),
    ],
)
def test_who_is_waited_for(phase: str, states: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert waited_for(RunStatus(phase, 1, members(*states))) == expected


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([4.0, 3.0, 2.0, 1.0, 0.5]) == "█▆▄▂▁"
    assert sparkline([1.0, float("nan"), None, 2.0]) == "▁  █"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([1.0]) == ""
    assert len(sparkline([float(n) for n in range(100)], width=40)) == 40


def test_the_coordinators_answer_becomes_a_status() -> None:
    reply = round_pb2.StatusReply(
        phase="work", round=4, members=[round_pb2.MemberStatus(replica="a", state="working", applied_round=3)]
    )
    assert run_status(reply) == RunStatus("work", 4, (MemberProgress("a", "working", 3),))
