"""Every token of a step is on exactly one rank, with its position and its target; other plans are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_train.data.batches import NO_TARGET, Batch
from dist_train.sequence.plan import Group, MicroBatch, SequencePlan
from dist_train.sequence.share import check_plan, share_of_rank

RANKS = 6


def plan_of(*micro_batches: dict[tuple[int, ...], tuple[int, ...]]) -> SequencePlan:
    batches = (MicroBatch(tuple(Group(ranks, held) for ranks, held in batch.items())) for batch in micro_batches)
    return SequencePlan(tuple(batches), 1.0, 0.5, 0.1, "random")


@given(st.permutations(range(6)), st.lists(st.sampled_from([1, 2, 3, 7, 17]), min_size=6, max_size=6))
def test_every_token_is_in_one_place(order: list[int], lengths: list[int]) -> None:
    batch = Batch(torch.arange(1, sum(lengths) + 1), tuple(lengths))  # each token is its own place; 0 fills
    a, b, c, d, e, f = order
    plan = plan_of({(0, 1, 2, 3): (a,), (5,): (b, c)}, {(2, 3): (d,), (0,): (e,), (4,): (f,)})
    check_plan(plan, batch.document_lengths, ranks=RANKS, heads=4)
    shares = [share_of_rank(batch, micro, rank) for micro in plan.micro_batches for rank in range(RANKS)]
    held = [share for share in shares if share.tokens.any()]
    assert sorted(torch.cat([share.tokens for share in held]).tolist()) == batch.tokens.tolist()
    for share in held:
        assert torch.equal(share.targets, batch.targets[share.tokens - 1])
        assert torch.equal(share.position_ids, batch.position_ids[share.tokens - 1])
    for share in shares:
        assert share in held or share.targets.tolist() == [NO_TARGET]


def test_an_idle_rank_and_one_without_a_token_hold_a_filler() -> None:
    batch = Batch(torch.tensor([7, 8, 9]), (2, 1))
    plan = plan_of({(0, 1, 2, 3): (1, 0)})
    shares = [share_of_rank(batch, plan.micro_batches[0], rank) for rank in range(5)]
    assert [share.tokens.tolist() for share in shares] == [[0], [9], [7], [8], [0]]
    assert [share.targets.tolist() for share in shares] == [[NO_TARGET], [NO_TARGET], [8], [NO_TARGET], [NO_TARGET]]
    assert [share.position_ids.tolist() for share in shares] == [[0], [0], [0], [1], [0]]
    assert [share.document_lengths for share in shares] == [(1, 2)] * 4 + [(1,)]
    assert shares[4].ranks == (4,)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of({(0,): (0,)}), "places 1 sequences, 1 different ones, of a step that has 2"),
        (plan_of({(0,): (0, 1, 1)}), "places 3 sequences, 2 different ones"),
        (plan_of({(0,): (0, 2)}), "each must be placed once"),
        (plan_of({(0,): (0,), (0, 1): (1,)}), r"Micro-batch 0 .* uses ranks \[0, 0, 1\]"),
        (plan_of({(0,): (0,)}, {(6,): (1,)}), "Micro-batch 1 .* of a replica of 6"),
        (plan_of({(1, 2): (0, 1)}), r"ranks \(1, 2\); a group is a power of two of consecutive"),
        (plan_of({(0, 1, 2): (0, 1)}), r"ranks \(0, 1, 2\); a group is"),
        (plan_of({(0, 2): (0, 1)}), r"ranks \(0, 2\); a group is"),
        (plan_of({(): (0, 1)}), r"ranks \(\); a group is"),
        (plan_of({(0,): (0, 1), (1,): ()}), r"gives ranks \(1,\) no sequence"),
        (plan_of({(0, 1, 2, 3): (0, 1)}), "4 ranks for a model of 3 query heads, .*degrees up to 3"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(plan: SequencePlan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_plan(replace(plan, planner="broken"), (5, 3), ranks=RANKS, heads=3)
