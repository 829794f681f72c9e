"""`dist-train plan-sequences`: a plan on the screen, errors in one line."""

import json
from pathlib import Path

import pytest

from launcher.cli import run


def lengths_file(folder: Path, text: str) -> str:
    path = folder / "lengths.txt"
    path.write_text(text)
    return str(path)


def test_the_plan_as_json_holds_every_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = lengths_file(tmp_path, "20000\n300\n5000\n1\n")
    assert run(["plan-sequences", lengths, "--ranks", "8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    groups = [group for micro_batch in facts["micro_batches"] for group in micro_batch]
    assert sorted(k for group in groups for k in group["sequences"]) == [0, 1, 2, 3]
    assert facts["lower_bound_s"] <= facts["predicted_s"]
    assert sum(group["tokens"] for group in groups) == 25301


def test_the_plan_as_text_says_what_each_micro_batch_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = lengths_file(tmp_path, "20000\n300\n")
    assert run(["plan-sequences", lengths, "--ranks", "4", "--planner", "static:4", "--speed", "2"]) == 0
    assert "micro-batch 0:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("5\n20000\n", ["--ranks", "2"], "sequence 1 of 20000 tokens does not fit"),
        ("five\n", ["--ranks", "2"], "'five' is no length; one length in tokens a line"),
        ("7\n-5\n", ["--ranks", "2"], "'-5' is no length"),
        ("5\n", ["--ranks", "4", "--speed", "1", "--speed", "2"], "--speed was given 2 times for 4 ranks"),
        ("5\n", ["--ranks", "4", "--planner", "best"], "there is no planner"),
        ("5\n", ["--ranks", "4", "--calibration", "/nowhere.json"], "no calibration can be read"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], said: str
) -> None:
    assert run(["plan-sequences", lengths_file(tmp_path, text), *options]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_a_file_that_is_not_there_is_named_without_an_error_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan-sequences", str(tmp_path / "nothing"), "--ranks", "2"]) == 2
    message = capsys.readouterr().err
    assert "nothing: No such file or directory; one length" in message
    assert "Errno" not in message
