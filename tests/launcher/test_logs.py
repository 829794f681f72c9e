"""Log lines say when and who; and a dead process's last words are found among them."""

import json
import logging
import sys
from pathlib import Path

import pytest

from launcher.logs import JsonFormatter, MemberFormatter, last_error

PREFIX = "12:00:00 [a] "
TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 3, in work
    raise ValueError("inner")
ValueError: inner

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 5, in work
    divide()
    ^^^^^^^^
torch.OutOfMemoryError: tried to allocate 2 GiB
on two lines
"""


def test_every_line_of_a_record_begins_with_time_and_member() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "first\nsecond", (), sys.exc_info())
    lines = MemberFormatter("a").format(record).splitlines()
    assert all(line[8:13] == " [a] " for line in lines)
    assert lines[0][13:] == "error: first"
    assert lines[1][13:] == "second"
    assert lines[-1][13:] == "ValueError: broken"


def test_the_level_is_said_when_it_is_more_than_information() -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "round %d", (3,), None)
    assert MemberFormatter("a").format(record).endswith(" [a] round 3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "", id="nothing"),
        pytest.param(f"{PREFIX}error: dist-train: no such peer\nlater\n", "no such peer", id="said"),
        pytest.param(TRACEBACK, "torch.OutOfMemoryError: tried to allocate 2 GiB", id="raised"),
        pytest.param(
            "".join(PREFIX + line + "\n" for line in TRACEBACK.splitlines()),
            "torch.OutOfMemoryError: tried to allocate 2 GiB",
            id="raised in the log",
        ),
        pytest.param("one\nSegmentation fault\n\n", "Segmentation fault", id="the last line"),
        pytest.param("x" * 300_000 + "\nlast\n", "last", id="only the end is read"),
        pytest.param("\udcff".encode(errors="surrogateescape").decode("latin1") + "é\n", "ÿé", id="not ASCII"),
    ],
)
def test_last_words(tmp_path: Path, text: str, expected: str) -> None:
    log = tmp_path / "a.log"
    log.write_text(text)
    assert last_error(log) == expected


def test_last_words_of_an_earlier_start_are_not_this_ones(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("dist-train: old\n")
    start_bytes = log.stat().st_size
    assert last_error(log, start_bytes) == ""
    log.write_text("dist-train: old\nnew\n")
    assert last_error(log, start_bytes) == "new"


def test_no_log_no_words(tmp_path: Path) -> None:
    assert last_error(tmp_path / "nothing.log") == ""


def test_a_record_is_one_object_with_run_round_and_member(tmp_path: Path) -> None:
    formatter = JsonFormatter("a", "demo")

    def said(message: str, level: int = logging.INFO) -> str:
        return formatter.format(logging.LogRecord("x", level, "x.py", 1, message, (), None))

    lines = [said("joined"), said("round 7: trained"), said("first\nsecond", logging.WARNING)]
    assert all("\n" not in line for line in lines)
    facts = [json.loads(line) for line in lines]
    assert [fact["round"] for fact in facts] == [0, 7, 7]
    assert {(fact["run"], fact["member"]) for fact in facts} == {("demo", "a")}
    assert (facts[2]["level"], facts[2]["message"]) == ("warning", "first\nsecond")
    assert facts[0]["at"].endswith("+00:00")


def test_last_words_are_found_among_objects(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    formatter = JsonFormatter("a", "demo")
    record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "dist-train: no such peer", (), None)
    log.write_text(formatter.format(record) + "\n{later\n")
    assert last_error(log) == "no such peer"
