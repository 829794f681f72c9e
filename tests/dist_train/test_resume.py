"""Killed and started again: the outcome is that of a run that nobody touched, bit for bit."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dist_train.config import Config
from dist_train.run_directory import RunDirectory
from tests.processes import processes
from tests.running import metrics, run, theta, tiny, write_corpus


def coverage(directory: RunDirectory) -> list[tuple[int, str]]:
    """Round and leases of all that was committed."""
    with sqlite3.connect(directory.journal) as database:
        rows = database.execute("SELECT round, json_extract(json, '$.leases') FROM committed ORDER BY round").fetchall()
    database.close()
    return rows


KILLS = {
    "sparseloco": [("a", "round 2: trained"), ("b", "round 3: published"), ("coordinator", "round 4: committed")],
    "diloco": [("a", "round 4: applied")],
    "ddp": [("b", "round 3: published")],
}


@pytest.mark.parametrize("method", KILLS)
def test_killed_everywhere_and_launched_again_equals_an_uninterrupted_run(tmp_path: Path, method: str) -> None:
    source = write_corpus(tmp_path / "corpus")
    outer = {"method": method, "rounds": 6 if method != "ddp" else 2}
    every = 2 if method == "sparseloco" else 1  # so that whole rounds are redone, too

    def config(name: str) -> Config:
        return tiny(tmp_path / name, source, outer=outer, checkpoint={"every_rounds": every})

    untouched = run(config("untouched"))
    with processes(config("killed")) as members:
        for member, event in KILLS[method]:
            members.start()
            members.wait_for(member, event)
            members.kill()
        members.start()
        assert set(members.finish().values()) == {0}
        killed = members.directory

    assert theta(killed)[0].theta_digest == theta(untouched)[0].theta_digest
    assert [r["theta_digest"] for r in metrics(killed)] == [r["theta_digest"] for r in metrics(untouched)]
    assert coverage(killed) == coverage(untouched)
