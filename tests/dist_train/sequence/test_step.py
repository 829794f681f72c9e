"""The loss and the gradients of a step are those of one process, whatever the plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen3Config

from dist_train.config import InnerConfig, ModelConfig
from dist_train.data.batches import Batch
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model, loss_sum
from dist_train.sequence.gradients import shard, step_bytes
from dist_train.sequence.groups import RankGroups
from dist_train.sequence.plan import Group, MicroBatch, SequencePlan
from dist_train.sequence.step import accumulate
from dist_train.sequence.ulysses import step_all_to_all_bytes
from dist_train.shards import whole
from tests.ranks import run_on_ranks

Shape = tuple[tuple[int, ...], ...]
# Degrees that divide the heads and that don't; key-value heads fewer than ranks, and shared unequally.
MODELS = (
    ModelConfig(hidden_size=16, layers=2, heads=8, kv_heads=2, vocab_size=16, intermediate_size=16),
    ModelConfig(hidden_size=24, layers=1, heads=12, kv_heads=3, vocab_size=16, intermediate_size=16),
)
LENGTHS = (1, 1, 2, 3, 5, 7, 8, 13, 16, 31)


@cache
def shapes(start: int, size: int) -> tuple[Shape, ...]:
    """All partitions of an aligned block of ranks in aligned groups and idle ranks, all idle included."""
    whole: Shape = (tuple(range(start, start + size)),)
    if size == 1:
        return (whole, ())
    half = size // 2
    return (whole, *(left + right for left in shapes(start, half) for right in shapes(start + half, half)))


def busy_shapes(count: int) -> list[Shape]:
    return [shape for shape in shapes(0, count) if shape]


def in_steps(chosen: Sequence[Shape], together: int) -> list[list[Shape]]:
    return [list(chosen[first : first + together]) for first in range(0, len(chosen), together)]


def random_batch(randomness: random.Random, sequences: int, vocab_size: int = 16) -> Batch:
    lengths = tuple(sorted(randomness.choices(LENGTHS, k=sequences), reverse=True))
    return Batch(torch.tensor(randomness.choices(range(vocab_size), k=sum(lengths))), lengths)


def random_plan(randomness: random.Random, sequences: int, chosen: Sequence[Shape]) -> SequencePlan:
    """A micro-batch for each shape; every group has a sequence, and all else is left to chance."""
    groups = [(number, ranks) for number, shape in enumerate(chosen) for ranks in shape]
    held: list[list[int]] = [[] for _ in groups]
    for nth, sequence in enumerate(randomness.sample(range(sequences), sequences)):
        held[nth if nth < len(groups) else randomness.randrange(len(groups))].append(sequence)
    micro_batches = tuple(
        MicroBatch(tuple(Group(ranks, tuple(held[i])) for i, (mine, ranks) in enumerate(groups) if mine == number))
        for number in range(len(chosen))
    )
    return SequencePlan(micro_batches, 0.0, 0.0, 0.0, "random")


def alone(model: nn.Module, batch: Batch) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one process."""
    model.zero_grad()
    loss = loss_sum(model, batch) / max(1, batch.num_targets)
    torch.autograd.backward(loss)
    return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]


def compare(
    ranks: RankGroups, sharded: bool, cases: list[list[Shape]], configs: tuple[ModelConfig, ...] = MODELS
) -> None:
    """One step for each case, its shapes as micro-batches."""
    for config in configs:
        reference, model = (build_model(config, seed=1).double() for _ in range(2))
        if sharded:
            shard(model, ranks)
        randomness = random.Random(repr((ranks.count, sharded, config.heads)))
        for case in cases:
            batch = random_batch(randomness, sum(map(len, case)) + randomness.randrange(4))
            plan = random_plan(randomness, len(batch.document_lengths), case)
            loss, gradients = alone(reference, batch)
            sent_before = ranks.traffic.sent_bytes("sequence_all_to_all")
            summed_before = ranks.traffic.sent_bytes("intra_replica")
            found = accumulate(model, batch, plan, ranks)
            assert abs(found.loss - loss) <= 1e-12 * max(1.0, loss), plan
            for (name, parameter), expected in zip(model.named_parameters(), gradients, strict=True):
                assert parameter.grad is not None
                difference = (whole(parameter.grad) - expected).abs().max().item()
                assert difference <= 1e-12, (plan, name, difference)
            sent = ranks.traffic.sent_bytes("sequence_all_to_all") - sent_before
            assert sum(ranks.gather(sent)) == step_all_to_all_bytes(
                plan, batch.document_lengths, model.config, value_bytes=8
            )
            summed = sum(ranks.gather(ranks.traffic.sent_bytes("intra_replica") - summed_before))
            predicted = step_bytes(model, ranks.count, len(plan.micro_batches))
            assert abs(summed - predicted) <= 0.001 * predicted, "a rank's share is rounded to bytes"


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_equality_in_every_shape(count: int, sharded: bool, tmp_path: Path) -> None:
    together = 3 if sharded else 1
    run_on_ranks(count, tmp_path, compare, sharded, in_steps(busy_shapes(count), together))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_equality_of_eight_ranks_in_some_shapes(sharded: bool, tmp_path: Path) -> None:
    run_on_ranks(8, tmp_path, compare, sharded, in_steps(random.Random(3).sample(busy_shapes(8), 10), 5))


def test_equality_where_the_ranks_are_no_power_of_two(tmp_path: Path) -> None:
    pairs, four = ((0, 1), (2, 3), (4, 5)), ((0, 1, 2, 3),)
    chosen = [pairs, four, (*four, (4, 5)), ((0, 1), (3,), (4, 5)), ((2,), (5,))]
    run_on_ranks(6, tmp_path, compare, False, [chosen])


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_equality_in_every_shape_of_three_ranks(sharded: bool, tmp_path: Path) -> None:
    chosen = [pair + third for pair in shapes(0, 2) for third in ((), ((2,),)) if pair or third]
    run_on_ranks(3, tmp_path, compare, sharded, in_steps(chosen, 3))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_equality_in_other_families(sharded: bool, tmp_path: Path) -> None:
    """Heads with norms of their own, heads with biases, and one weight that embeds and predicts."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2}
    configs = []
    for family in (Qwen2Config, Qwen3Config):
        directory = tmp_path / family.model_type
        family(
            **sizes, intermediate_size=16, vocab_size=16, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None
        ).save_pretrained(directory)
        configs.append(ModelConfig(path=str(directory)))
    chosen = [((0, 1, 2, 3),), ((0, 1), (2,)), ((1,), (2, 3))]
    run_on_ranks(4, tmp_path, compare, sharded, [chosen], tuple(configs))


@pytest.mark.full_matrix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_equality_of_eight_ranks_in_every_shape(sharded: bool, tmp_path: Path) -> None:
    run_on_ranks(8, tmp_path, compare, sharded, in_steps(busy_shapes(8), 1))


def coarse(ranks: RankGroups, sharded: bool) -> None:
    """A step in bf16 is as far from fp64 as one process in bf16 is, or little more, and a value has 2 bytes."""
    exact, single, together = (build_model(MODELS[0], seed=1).to(t) for t in (torch.double, BF16, BF16))
    if sharded:
        shard(together, ranks)
    randomness = random.Random(11)
    batch = random_batch(randomness, 9)
    plan = random_plan(randomness, 9, [((0, 1, 2, 3),), ((0, 1), (2,), (3,))])
    (loss, reference), (coarse_loss, expected) = alone(exact, batch), alone(single, batch)
    found = accumulate(together, batch, plan, ranks)
    assert abs(found.loss - loss) <= 2 * abs(coarse_loss - loss) + 0.01
    for parameter, fine, rough in zip(together.parameters(), reference, expected, strict=True):
        assert parameter.grad is not None
        own = (whole(parameter.grad).double() - fine).norm()
        assert own <= 2 * (rough.double() - fine).norm() + 0.01 * fine.norm()
    sent = ranks.gather(ranks.traffic.sent_bytes("sequence_all_to_all"))
    assert sum(sent) == step_all_to_all_bytes(plan, batch.document_lengths, together.config, value_bytes=2)


BF16 = torch.bfloat16


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_a_step_in_bf16(sharded: bool, tmp_path: Path) -> None:
    run_on_ranks(4, tmp_path, coarse, sharded)


CURVE = InnerConfig(lr=1e-3, warmup_steps=0)


def curve(ranks: RankGroups, sharded: bool, steps: int) -> None:
    """Trains with another plan in every step, beside one process that knows no plans."""
    single, together = (
        InnerOptimizer(shard(model, ranks) if sharded and nth else model, CURVE, steps)
        for nth, model in enumerate(build_model(MODELS[0], seed=1).double() for _ in range(2))
    )
    randomness = random.Random(5)
    for _ in range(steps):
        chosen = randomness.sample(busy_shapes(ranks.count), 2)
        batch = random_batch(randomness, sum(map(len, chosen)) + 4)
        plan = random_plan(randomness, len(batch.document_lengths), chosen)
        loss = single.accumulate(batch)
        found = accumulate(together.model, batch, plan, ranks)
        assert abs(found.loss - loss) <= 1e-9
        assert abs(together.step() - single.step()) <= 1e-9


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_the_loss_curve_under_changing_plans_is_that_of_one_process(sharded: bool, tmp_path: Path) -> None:
    run_on_ranks(4, tmp_path, curve, sharded, 12)
