"""Aligned groups: all of them, once, on ranks that are real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from comms.ledger import Ledger
from dist_train.sequence.groups import RankGroups, aligned_groups
from dist_train.sequence.traffic import ALL_PEERS, RankTraffic
from tests.ranks import run_on_ranks


def test_groups_by_hand() -> None:
    singles = [(rank,) for rank in range(6)]
    assert aligned_groups(6) == [*singles, (0, 1), (2, 3), (4, 5), (0, 1, 2, 3)]
    assert aligned_groups(1) == [(0,)]


@pytest.mark.parametrize("count", range(1, 70))
def test_there_are_fewer_than_twice_the_ranks(count: int) -> None:
    groups = aligned_groups(count)
    assert len(set(groups)) == len(groups) <= 2 * count - 1
    assert all(ranks[0] % len(ranks) == 0 and len(ranks).bit_count() == 1 for ranks in groups)


def each_group_sums_its_own(ranks: RankGroups) -> None:
    for members in aligned_groups(ranks.count):
        if ranks.rank in members:
            group = ranks.group(members)
            if group is None:
                assert members == (ranks.rank,)
                continue
            number = torch.tensor([ranks.rank])
            dist.all_reduce(number, group=group.process_group)
            assert number.item() == sum(members)
            assert members[group.position] == ranks.rank
            assert group.degree == len(members)
    with pytest.raises(ValueError, match=r"Ranks \(1, 2\) are no group of rank \d of 5; a group is a power of two"):
        ranks.group((1, 2))
    facts = {"text": "ü", "numbers": [1, 0.1, None]}
    assert ranks.broadcast(facts if ranks.rank == 0 else "mine") == facts
    assert ranks.gather(ranks.rank / 3) == [rank / 3 for rank in range(5)]


def test_five_ranks_and_their_groups(tmp_path: Path) -> None:
    run_on_ranks(5, tmp_path, each_group_sums_its_own)


def test_the_ledger_gets_the_sums_once(tmp_path: Path) -> None:
    traffic = RankTraffic()
    for _ in range(2):
        traffic.record("sequence_all_to_all", 3, sent_bytes=5, received_bytes=7, seconds=0.5)
    traffic.record_ring("intra_replica", 400, 4, halves=2, seconds=0.25)
    with Ledger(tmp_path / "ledger.jsonl", "a/1") as ledger:
        traffic.tally(ledger, lambda peer: "a/*" if peer == ALL_PEERS else f"a/{peer}")
        traffic.tally(ledger, str)
        ledger.flush(9)
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["peer"], row["direction"], row["bytes"], row["seconds"]) for row in rows] == [
        ("sequence_all_to_all", "a/3", "sent", 10, 1.0),
        ("sequence_all_to_all", "a/3", "received", 14, 1.0),
        ("intra_replica", "a/*", "sent", 600, 0.25),
        ("intra_replica", "a/*", "received", 600, 0.25),
    ]
