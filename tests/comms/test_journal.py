"""What was written is what is read, after whatever happened in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.agreement import Applied, CommittedRound, Entry, Holder, Offer, Payload, Problem, Report
from comms.errors import JournalError
from comms.journal import Journal
from comms.leases import LeaseBook, Segment
from comms.run_state import Member, Phase, RoundRules, RunState
from tests.comms.world import World, rules

ROOT = Path(__file__).parents[2]
names = st.sampled_from("abc")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(0, 2**64 - 1)
numbers = st.integers(0, 2**32 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
figures = st.dictionaries(texts, finite, max_size=3)
leases = st.lists(st.builds(Segment, numbers, counts, counts), max_size=3).map(tuple)
manifests = st.lists(st.builds(Entry, names, texts, digests, counts, counts), max_size=3).map(tuple)
holders = st.lists(st.builds(Holder, names, texts), max_size=2).map(tuple)
committed_rounds = st.builds(CommittedRound, numbers, manifests, st.dictionaries(names, leases), holders)
payloads = st.lists(st.builds(Payload, texts, digests, counts), max_size=2).map(tuple)
reports = st.dictionaries(names, st.builds(Report, numbers, payloads, counts, finite, figures))
applied = st.dictionaries(names, st.builds(Applied, numbers, digests, finite, counts, figures, figures))
problems = st.dictionaries(names, st.lists(st.builds(Problem, digests, texts), max_size=2).map(tuple))
addresses = st.lists(texts, max_size=2).map(tuple)
members = st.dictionaries(
    names, st.builds(Member, texts, texts, numbers, digests, finite, numbers, st.none() | finite, addresses)
)
books = st.builds(LeaseBook, counts, numbers, counts, leases)
RULES = rules()
states = st.builds(
    RunState,
    rules=st.just(RULES),
    phase=st.sampled_from(Phase),
    round=numbers,
    since_s=finite,
    gathering=st.lists(names).map(tuple),
    members=members,
    corpus_digest=digests,
    book=st.none() | books,
    short_since_s=st.none() | finite,
    leases=st.dictionaries(names, leases),
    reports=reports,
    first_report_s=st.none() | finite,
    opened_s=finite,
    attempt=numbers,
    manifest=manifests,
    acknowledged=problems,
    absent=st.dictionaries(names, texts),
    set_aside=reports,
    late=reports,
    committed=st.none() | committed_rounds,
    committed_reports=reports,
    committed_absent=st.dictionaries(names, texts),
    applied=applied,
    round_s=finite,
    summarised_round=numbers,
    tokens=counts,
    failure=texts,
    faults=st.dictionaries(names, st.lists(texts, max_size=2).map(tuple)),
    damaged=st.dictionaries(names, digests),
    offers=st.dictionaries(names, st.builds(Offer, numbers, digests, digests, counts)),
    agreed=st.dictionaries(numbers, digests),
)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, number = tmp_path_factory.mktemp("journal"), count()
    return lambda: folder / "deep" / f"{next(number)}.sqlite"


@pytest.fixture(scope="module")
def shared(numbered: Any) -> Path:
    path: Path = numbered()
    return path


def reopened(path: Path, state: RunState) -> RunState | None:
    journal = Journal(path)
    journal.write(state)
    journal.close()
    journal = Journal(path)
    try:
        return journal.load(RULES)
    finally:
        journal.close()


@given(state=states)
def test_a_state_survives_bit_for_bit(shared: Path, state: RunState) -> None:
    after = reopened(shared, state)
    assert after == state
    assert repr(after) == repr(state), "types and order, too"


def test_the_strategies_know_every_field_of_a_state() -> None:
    """A field added to RunState must be added above."""
    assert set(RunState.__dataclass_fields__) == {
        "rules", "phase", "round", "since_s", "gathering", "members", "corpus_digest", "book", "short_since_s",
        "leases", "reports", "first_report_s", "opened_s", "attempt", "manifest", "acknowledged", "absent",
        "set_aside", "late", "committed", "committed_reports", "committed_absent", "applied", "round_s",
        "summarised_round", "tokens", "failure", "faults", "damaged", "offers", "agreed",
    }  # fmt: skip


def test_a_new_journal_knows_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new.sqlite")
    assert journal.load(RULES) is None
    assert list(journal.history(0)) == []
    journal.close()


def test_the_history_of_a_run_is_its_committed_rounds_in_order(tmp_path: Path) -> None:
    world = World(rules(rounds=12))
    world.start(*"abc")
    world.act()
    journal = Journal(tmp_path / "run.sqlite")
    for committed in world.history:
        journal.write(world.state, committed)
    for after_round in (0, 3, 11, 12, 99):
        assert list(journal.history(after_round)) == world.history[after_round:]
    journal.close()


def test_a_round_is_committed_once(tmp_path: Path) -> None:
    world = World(rules(rounds=1))
    world.start(*"abc")
    world.act()
    journal = Journal(tmp_path / "run.sqlite")
    journal.write(RunState(RULES), world.history[0])
    with pytest.raises(JournalError, match=r"run\.sqlite: .*committed"):
        journal.write(world.state, world.history[0])
    assert journal.load(RULES) == RunState(RULES), "neither the round nor the state was written"
    journal.close()


def test_the_journal_of_another_config_is_refused_with_the_remedy(tmp_path: Path) -> None:
    world = World(rules(rounds=1))
    world.start(*"abc")
    world.act()
    path = tmp_path / "run.sqlite"
    reopened(path, world.state)
    journal = Journal(path)
    with pytest.raises(JournalError, match=r"config c0c0c0c0c0c0, not 000000000000: choose another run\.directory"):
        journal.load(replace(RULES, config_digest="00" * 32))
    journal.close()


@pytest.mark.parametrize("content", [b"this is no database" * 100, b""])
def test_a_file_that_is_no_journal_is_an_error_or_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.sqlite"
    path.write_bytes(content)
    if content:
        with pytest.raises(JournalError, match=r"run\.sqlite: file is not a database"):
            Journal(path)
    else:
        journal = Journal(path)
        assert journal.load(RULES) is None
        journal.close()


def test_a_state_that_is_none_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    reopened(path, RunState(RULES))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE state SET json = ?", (b'{"phase": "later"}',))
    database.close()
    journal = Journal(path)
    with pytest.raises(JournalError, match=r"run\.sqlite cannot be read") as caught:
        journal.load(RULES)
    assert "\n" not in str(caught.value)
    journal.close()


def test_a_folder_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").mkdir()
    with pytest.raises(JournalError, match=r"run\.sqlite"):
        Journal(tmp_path / "run.sqlite")


WRITES_UNTIL_KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from comms.journal import Journal
from comms.run_state import RunState
from comms.agreement import CommittedRound
from tests.comms.world import rules
journal, number = Journal(Path(sys.argv[1])), 0
while True:
    number += 1
    journal.write(replace(RunState(rules()), tokens=number, failure="x" * number), CommittedRound(number, (), {}))
    print(number, flush=True)
"""


def test_what_was_written_before_a_kill_is_there_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    command = [sys.executable, "-c", WRITES_UNTIL_KILLED, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(20):
        written = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    said = max([written, *map(int, rest)])
    journal = Journal(path)
    state = journal.load(RULES)
    assert state is not None
    assert state.tokens in (said, said + 1)
    assert len(state.failure) == state.tokens
    assert [committed.round for committed in journal.history(0)] == list(range(1, state.tokens + 1))
    journal.close()


def rules_with(**changes: Any) -> RoundRules:
    return replace(RULES, **changes)


def test_a_state_is_loaded_under_the_rules_of_now(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    reopened(path, RunState(rules_with(fetch_deadline_s=1.0), phase=Phase.WORK))
    journal = Journal(path)
    state = journal.load(rules_with(fetch_deadline_s=2.0))
    journal.close()
    assert state is not None
    assert (state.rules.fetch_deadline_s, state.phase) == (2.0, Phase.WORK)
