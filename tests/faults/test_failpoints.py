"""Every failpoint under every fault: the run ends in bounded time, all replicas equal, nothing lost, nothing twice.

With min_replicas = all, no round can commit without the victim's work, so the outcome has to be that of an untouched
run: every round, with everybody's contribution, on the same part of the corpus. (Who has which part of it may differ:
one who comes late to a round is given its lease last.) A few run in `make test`, all of them in `make test-faults`.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from comms import failpoints
from comms.leases import Lease, Segment, merge
from dist_train.checkpoint import read_checkpoint
from dist_train.config import Config
from dist_train.run_directory import RunDirectory
from tests.processes import COORDINATOR, Processes, processes
from tests.running import metrics, run, tiny, write_corpus

ROUNDS, FAULTY_ROUND, VICTIM = 4, 2, "b"
LIVENESS_S = 3.0
QUICK = {
    ("mid-stream", "kill"),
    ("before-acknowledge", "stop"),
    ("between-commit-and-apply", "kill"),
    ("coordinator-after-journal", "kill"),
    ("after-publish", "cut"),
}


def every_case() -> list[object]:
    return [
        pytest.param(point, fault, marks=() if (point, fault) in QUICK else pytest.mark.full_matrix)
        for point in failpoints.POINTS
        for fault in ("kill", "stop", "cut")
    ]


@pytest.fixture(scope="module")
def config_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    source = write_corpus(tmp_path_factory.mktemp("corpus"))
    deadlines = {
        "heartbeat_s": 0.5,
        "liveness_deadline_s": LIVENESS_S,
        "reconnect_deadline_s": 1.0,
        "publish_deadline_s": 30.0,
        "fetch_deadline_s": 10.0,
        "gather_deadline_s": 60.0,
        "outage_deadline_s": 60.0,
    }
    return lambda path, **exchange: tiny(
        path, source, replicas=3, outer={"rounds": ROUNDS}, exchange=deadlines | {"min_replicas": 3} | exchange
    )


@pytest.fixture(scope="module")
def untouched(config_at: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(config_at(tmp_path_factory.mktemp("untouched")))


@pytest.mark.parametrize(("point", "fault"), every_case())
def test_a_fault_changes_nothing(
    point: str, fault: str, config_at: Callable[..., Config], untouched: RunDirectory, tmp_path: Path
) -> None:
    fired = tmp_path / "fired"
    victim = COORDINATOR if point.startswith(COORDINATOR) else VICTIM
    # Behind by one round, it redoes that; or, where none may be redone, it begins with a snapshot of the others.
    is_late = point in ("during-catch-up", "during-snapshot-transfer")
    most_replayed_rounds = 0 if point == "during-snapshot-transfer" else 20
    with processes(config_at(tmp_path / "run", most_replayed_rounds=most_replayed_rounds)) as members:
        if is_late:
            fall_behind(members)
        else:
            arm(members, victim, f"{point}@{FAULTY_ROUND}={fault}", fired)
            members.start()
        if is_late:
            arm(members, victim, f"{point}={fault}", fired)
            members.start_replica(victim)
        recover(members, victim, fault)
        assert set(members.finish().values()) == {0}
    assert fired.read_text().split()[:3:2] == [point, fault], "the fault did not fire"
    assert outcome(members.directory) == outcome(untouched)


def arm(members: Processes, victim: str, what: str, log: Path) -> None:
    """Makes the next start of `victim` a faulty one."""
    members.environment[victim] = {"DIST_TRAIN_FAILPOINTS": what, "DIST_TRAIN_FAILPOINTS_LOG": str(log)}


def fall_behind(members: Processes) -> None:
    """Lets the victim die between the commit of a round, which has its contribution, and its own outer step."""
    arm(members, VICTIM, f"between-commit-and-apply@{FAULTY_ROUND}=kill", members.directory.path / "behind")
    members.start()
    members.wait_for(VICTIM, ".")
    members.members.pop(VICTIM).communicate(timeout=60.0)


def recover(members: Processes, victim: str, fault: str) -> None:
    """What an operator, or the network, does after the fault."""
    process = members.members[victim]
    if fault == "kill":
        members.wait_for(victim, ".")  # it lives: to import torch takes a busy machine a minute, which is no part of it
        process.communicate(timeout=60.0)
        assert process.returncode == -signal.SIGKILL
        if victim == COORDINATOR:
            members.start_coordinator()
        else:
            members.start_replica(victim)
    if fault == "stop":
        stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert stopped is not None
        assert stopped.si_code == os.CLD_STOPPED
        time.sleep(LIVENESS_S + 1.0)  # the fault itself: silence for longer than anybody is patient
        process.send_signal(signal.SIGCONT)


def outcome(directory: RunDirectory) -> object:
    """All that must not depend on faults, and that the replicas hold the same."""
    held = {
        path.stem: read_checkpoint(path)[0].theta_digest
        for path in (directory.checkpoints / f"round-{ROUNDS}").glob("*.safetensors")
    }
    assert set(held) == {"a", "b", "c", "outer"}
    assert len(set(held.values())) == 1, held
    rows = [(row["round"], row["contributors"], row["agreed"]) for row in metrics(directory)]
    return rows, [merge(tuple(sorted(s for leases in of_round for s in leases))) for of_round in committed(directory)]


def committed(directory: RunDirectory) -> list[list[Lease]]:
    """The leases of each committed round."""
    with closing(sqlite3.connect(directory.journal)) as database:
        rows = database.execute("SELECT json FROM committed ORDER BY round").fetchall()
    leases = [json.loads(row)["leases"].values() for (row,) in rows]
    return [[tuple(Segment(**segment) for segment in lease) for lease in of_round] for of_round in leases]
