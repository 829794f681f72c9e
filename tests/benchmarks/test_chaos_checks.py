"""The judge of histories: a good one passes, and of each bad one it says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.checks import violations
from benchmarks.chaos.history import History, Record, read
from benchmarks.chaos.throughput import throughput

REPLICAS = ["a", "b"]
ROUNDS = 10


def good() -> list[Record]:
    """Two replicas, ten rounds of ten seconds, 100 tokens a lease; b is killed at 52 s and is back at 62 s."""
    records: list[Record] = [
        {"kind": "header", "at": 0.0, "version": 1, "seed": 1, "replicas": REPLICAS,
         "commit_bound_s": 15.0, "return_bound_s": 20.0},
        *({"kind": "phase", "at": at, "phase": phase} for phase, at in
          (("start", 0.0), ("baseline", 1.0), ("chaos", 45.0), ("quiet", 95.0), ("end", 101.0))),
        {"kind": "fault", "at": 52.0, "fault": "kill", "victim": "b", "evidence": "exit code -9", "lifted_at": 62.0},
    ]  # fmt: skip
    at_token = 0
    for number in range(1, ROUNDS + 1):
        contributors = ["a"] if number in (6, 7) else REPLICAS
        leases = {}
        for replica in contributors:
            leases[replica] = [[at_token // 300, at_token % 300, at_token % 300 + 100]]
            at_token += 100
        records.append(
            {"kind": "round", "at": 10.0 * number, "round": number, "contributors": contributors, "leases": leases,
             "tokens": dict.fromkeys(contributors, 100), "agreed": True}
        )  # fmt: skip
    for number in range(1, ROUNDS + 1):
        listed = ", ".join(["a"] if number in (6, 7) else REPLICAS)
        for member in REPLICAS:
            second = member == "b" and number > 5
            if second and number == 6:
                records.append(log("b", "resuming from the checkpoint of round 5", 2))
            said = f"round {number}: applied {listed}, parameters {number:012x}"
            records.append(log(member, said, 2 if second else 1))
    epoch, position = divmod(at_token, 300)
    records.append(
        {"kind": "stream", "at": 101.0, "tokens_per_epoch": 300, "position": [epoch, position + 70],
         "returned": [[epoch, position, position + 20]], "held": [[epoch, position + 20, position + 70]]}
    )  # fmt: skip
    return records


def log(member: str, message: str, number: int = 1) -> Record:
    return {"kind": "log", "at": 50.0, "member": member, "number": number, "message": message}


def test_a_good_history_passes() -> None:
    assert violations(good()) == []


def test_a_kept_history_is_read_again(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for record in good():
        history.add(**record)
    history.close()
    assert read(tmp_path / "history.jsonl") == good()


def one(records: list[Record], kind: str, **facts: Any) -> Record:
    return next(r for r in records if r["kind"] == kind and all(r[key] == value for key, value in facts.items()))


def said(records: list[Record], member: str, start: str) -> Record:
    logs = [r for r in records if r["kind"] == "log" and r["member"] == member]
    return next(record for record in logs if record["message"].startswith(start))


def differ(records: list[Record]) -> None:
    said(records, "b", "round 4: applied")["message"] = "round 4: applied a, b, parameters ffffffffffff"


def apply_others(records: list[Record]) -> None:
    said(records, "b", "round 7: applied")["message"] = f"round 7: applied a, b, parameters {7:012x}"


def disagree_unseen(records: list[Record]) -> None:
    one(records, "round", round=3)["agreed"] = False


def apply_twice(records: list[Record]) -> None:
    records.insert(records.index(said(records, "a", "round 5: applied")), said(records, "a", "round 4: applied"))


def leave_out(records: list[Record]) -> None:
    records.remove(said(records, "a", "round 5: applied"))


def forget_the_past(records: list[Record]) -> None:
    records.remove(said(records, "b", "resuming"))


def lose_a_round(records: list[Record]) -> None:
    records.remove(one(records, "round", round=ROUNDS))
    one(records, "round", round=9)["round"] = 10


def run_backwards(records: list[Record]) -> None:
    one(records, "round", round=8)["at"] = 69.0


def consume_for_nobody(records: list[Record]) -> None:
    row = one(records, "round", round=7)
    row["leases"]["b"] = []


def lose_tokens(records: list[Record]) -> None:
    one(records, "round", round=2)["leases"]["a"][0][1] += 10


def consume_twice(records: list[Record]) -> None:
    one(records, "round", round=2)["leases"]["b"] = deepcopy(one(records, "round", round=1)["leases"]["b"])


def lose_the_end(records: list[Record]) -> None:
    one(records, "stream")["held"] = []


def forget_the_stream(records: list[Record]) -> None:
    records.remove(one(records, "stream"))


def misfire(records: list[Record]) -> None:
    one(records, "fault")["evidence"] = ""


def never_lift(records: list[Record]) -> None:
    one(records, "fault")["lifted_at"] = None


def stand_still(records: list[Record]) -> None:
    for record in records:
        if record["kind"] == "round" and record["round"] >= 6:
            record["at"] += 20.0


def never_return(records: list[Record]) -> None:
    for record in records:
        if record["kind"] == "round" and record["round"] >= 6:
            record["contributors"] = ["a"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (differ, "agreement: after round 4 they hold"),
        (apply_others, "agreement: b#2 applied round 7 of a, b, committed is a"),
        (disagree_unseen, "agreement: the coordinator heard of different parameters after round 3"),
        (apply_twice, "applied_once: a#1 applied round 4 after round 4"),
        (leave_out, "applied_once: a#1 applied round 6 after round 4"),
        (forget_the_past, "applied_once: b#2 applied round 6 after round 0"),
        (lose_a_round, "commits: the committed rounds are"),
        (run_backwards, "commits: round 8 was committed before round 7"),
        (consume_for_nobody, "commits: round 7 of ['a'] consumes leases of ['a', 'b']"),
        (lose_tokens, "leases: 10 tokens lost before 0:210, a in round 2"),
        (consume_twice, "leases: 100 tokens consumed twice before"),
        (lose_the_end, "leases: the last owner ends at token"),
        (forget_the_stream, "leases: 0 records say"),
        (misfire, "faults: kill of b did not fire"),
        (never_lift, "faults: kill of b could not be lifted"),
        (stand_still, "recovery: no round was committed within 15 s of the kill of b"),
        (never_return, "recovery: b did not contribute within 20 s of the end of its kill"),
    ],
)
def test_each_violation_is_found(spoil: Callable[[list[Record]], None], complaint: str) -> None:
    records = good()
    spoil(records)
    found = violations(records)
    assert any(what.startswith(complaint) for what in found), found


def test_both_ratios_by_hand() -> None:
    """Baseline: rounds 2 to 4, 600 tokens in 30 s. Chaos: 6 to 9, 600 tokens in 40 s of which b was away for 10."""
    found = throughput(good())
    assert found["baseline"]["tokens"] == 600
    assert found["chaos"]["tokens"] == 600
    assert found["of_all"] == pytest.approx((600 / 40) / (600 / 30))
    assert found["surviving_replica_seconds"] == pytest.approx(2 * 40 - 10)
    assert found["of_surviving"] == pytest.approx(600 / (600 / 30 / 2 * 70))


def test_what_a_newcomer_adds_counts_only_with_its_seconds() -> None:
    records = good()
    one(records, "round", round=8)["tokens"]["x"] = 100
    records.append(
        {"kind": "fault", "at": 70.0, "fault": "join", "victim": "x", "evidence": "let in", "lifted_at": 71.0}
    )
    found = throughput(records)
    assert found["of_all"] == pytest.approx((600 / 40) / (600 / 30))
    assert found["surviving_replica_seconds"] == pytest.approx(2 * 40 - 10 + 19)
