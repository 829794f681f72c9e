"""Every byte that a member counted is in exactly one row."""

from __future__ import annotations

import json
import threading
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.ledger import MESSAGE_HEADER_BYTES, Direction, Ledger


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, numbers = tmp_path_factory.mktemp("ledger"), count()
    return lambda: folder / "deep" / f"{next(numbers)}.jsonl"


directions: st.SearchStrategy[Direction] = st.sampled_from(["sent", "received"])
control = st.tuples(st.just("control"), st.sampled_from("ab"), directions, st.integers(0, 10**12))
transfers = st.tuples(st.just("transfer"), st.sampled_from("ab"), directions, st.integers(0, 10**12))
flushes = st.tuples(st.just("flush"), st.just(""), directions, st.integers(0, 9))


@given(events=st.lists(st.one_of(control, transfers, flushes), max_size=30))
def test_all_that_was_counted_is_written_once(numbered: Any, events: list[tuple[str, str, Direction, int]]) -> None:
    path, counted = numbered(), Counter[tuple[str, str, str]]()
    with Ledger(path, "me", clock=lambda: 12.5) as ledger:
        for what, peer, direction, number in events:
            if what == "control":
                ledger.control(peer=peer, direction=direction, num_bytes=number)
                counted["control", peer, direction] += number + MESSAGE_HEADER_BYTES
            elif what == "transfer":
                ledger.transfer(
                    round_number=1, peer=peer, direction=direction, kind="pseudo_gradient", num_bytes=number,
                    seconds=0.25, fragment="embed",
                )  # fmt: skip
                counted["pseudo_gradient", peer, direction] += number
            else:
                ledger.flush(number)
    written = Counter[tuple[str, str, str]]()
    for row in rows(path):
        written[row["kind"], row["peer"], row["direction"]] += row["bytes"]
        assert (row["member"], row["at_s"]) == ("me", 12.5)
    assert written == +counted


def test_a_flush_writes_the_control_traffic_of_its_round_and_no_other(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.jsonl", "me") as ledger:
        ledger.control(peer="a", direction="sent", num_bytes=10)
        ledger.flush(1)
        ledger.flush(2)
        ledger.control(peer="a", direction="sent", num_bytes=20)
        ledger.control(peer="a", direction="sent", num_bytes=30)
        ledger.flush(3)
    assert [(row["round"], row["bytes"]) for row in rows(tmp_path / "x.jsonl")] == [(1, 15), (3, 60)]


def test_rows_are_whole_at_once_and_a_second_run_adds_to_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for number in (1, 2):
        with Ledger(path, "me") as ledger:
            ledger.transfer(
                round_number=number, peer="a", direction="sent", kind="state_transfer", num_bytes=7, seconds=0.0
            )
            assert len(rows(path)) == number, "before the file is closed: a member may be killed"


def test_threads_lose_no_byte_and_tear_no_row(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(200):
            ledger.control(peer="a", direction="sent", num_bytes=1)
            ledger.transfer(round_number=1, peer="a", direction="sent", kind="activation", num_bytes=1, seconds=0.0)

    with Ledger(tmp_path / "x.jsonl", "me") as ledger:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sums = Counter[str]()
    for row in rows(tmp_path / "x.jsonl"):
        sums[row["kind"]] += row["bytes"]
    assert sums == {"activation": 800, "control": 800 * (1 + MESSAGE_HEADER_BYTES)}
