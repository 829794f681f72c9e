"""The engines that a replica of several ranks can have: whoever plans, the loss curve is that of one process."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from comms.ledger import Ledger
from dist_train.config import Config, ConfigError, DataConfig, InnerConfig, ModelConfig, ReplicaConfig, parse
from dist_train.config.budget import sharing_problems, tokens_per_rank
from dist_train.config.replicas import SequenceConfig
from dist_train.crew import GroupCrew
from dist_train.data.batches import Batch
from dist_train.engine import Engine, SharedEngine
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model
from dist_train.sequence.cost import REFERENCE_7B
from dist_train.sequence.engine import SequenceEngine, sequence_engine
from dist_train.sequence.groups import RankGroups
from dist_train.sequence.planner import plan_step
from dist_train.sequence.ranks import Ranks
from dist_train.shards import local, whole
from tests.ranks import run_on_ranks

STEPS = 6
LENGTHS = (1, 1, 2, 3, 5, 7, 11, 13, 17, 29, 31)
Curve = list[tuple[float, float]]


def config_of(ranks: int, planner: str, *, shard: bool = False, **sequence: Any) -> Config:
    """Eight query heads, two key-value heads, and documents of at most 32 tokens."""
    return parse(
        {
            "model": {"hidden_size": 16, "layers": 2, "heads": 8, "kv_heads": 2, "vocab_size": 16},
            "data": {"sequence_tokens": 32},
            "inner": {"batch_tokens": 96, "lr": 1e-3, "warmup_steps": 0},
            "sequence": {"planner": planner, "plan_deadline_s": 60.0, **sequence},
            "replica": [{"id": "a", "ranks": ranks, "shard": shard}],
        }
    )


def batches() -> list[Batch]:
    """Long-tailed ones, and a step of which nothing can be learnt: all its documents have one token."""
    randomness = random.Random(7)
    lengths = [tuple(sorted(randomness.choices(LENGTHS, k=8), reverse=True)) for _ in range(STEPS)]
    lengths[STEPS // 2] = (1,) * 5
    return [Batch(torch.tensor(randomness.choices(range(16), k=sum(one))), one) for one in lengths]


def curve_of(inner: InnerOptimizer, ranks: RankGroups | None = None) -> Curve:
    """Loss and gradient norm of every step, by the loop that a round has."""
    found = []
    for batch, after in pairwise([*batches(), None]):
        assert batch is not None
        inner.engine.expect(None if after is None else after.document_lengths)
        share = inner.accumulate(batch)
        found.append((share if ranks is None else sum(ranks.gather(share)), inner.step()))
    return found


@contextmanager
def engine_of(
    config: Config, ranks: RankGroups, model: torch.nn.Module, folder: Path, ledger: Ledger
) -> Iterator[Engine]:
    """As `seat_of` chooses it."""
    if config.sequence.planner == "off":
        yield SharedEngine(model, GroupCrew(ranks.everybody))
        return
    engine = sequence_engine(config, config.replica[0], model, folder, ledger)
    with engine.plans:
        yield engine


def curves(ranks: RankGroups, folder: Path, shard: bool, planners: tuple[str, ...]) -> None:
    """Trains with each planner from the same weights, beside one process that has no ranks."""
    alone = InnerOptimizer(build_model(config_of(1, "off").model, seed=1).double(), config_of(1, "off").inner, STEPS)
    expected = curve_of(alone)
    assert expected[STEPS // 2] == (0.0, 0.0)
    for planner in planners:
        config = config_of(ranks.count, planner, shard=shard)
        model, path = build_model(config.model, seed=1).double(), folder / f"ledger-{planner}-{ranks.rank}.jsonl"
        with Ledger(path, "a") as ledger, engine_of(config, ranks, model, folder, ledger) as engine:
            inner, parameters = InnerOptimizer(model, config.inner, STEPS, engine), list(model.parameters())
            for step, (one, other) in enumerate(zip(curve_of(inner, ranks), expected, strict=True)):
                assert one == pytest.approx(other, rel=1e-10, abs=1e-12), (planner, step)
            for (name, parameter), reference in zip(model.named_parameters(), alone.model.parameters(), strict=True):
                assert (whole(parameter) - reference).abs().max() <= 1e-9, (planner, name)
            if isinstance(engine, SequenceEngine):
                ledger.flush(1)
                trained = engine.figures()
                assert ranks.rank or trained["sequence_late"] == 0
                assert_predicted(trained, ranks, path, 1)
                assert_evaluates_like(alone, engine, config)
                ledger.flush(2)
                assert_predicted(engine.figures(), ranks, path, 2)
                moved_elsewhere(parameters, 0.5)
                moved_elsewhere(alone.model.parameters(), 0.5)
                assert_evaluates_like(alone, engine, config)
                moved_elsewhere(alone.model.parameters(), 2.0)


def moved_elsewhere(parameters: Iterable[torch.nn.Parameter], factor: float) -> None:
    """As by a round that this replica only follows."""
    for parameter in parameters:
        local(parameter.detach()).mul_(factor)


def assert_predicted(figures: dict[str, float], ranks: RankGroups, path: Path, round_number: int) -> None:
    """The bytes in the ledgers of all ranks are those that were predicted; a rank's share of a ring is rounded."""
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["round"] == round_number]
    for kind in ("sequence_all_to_all", "intra_replica"):
        sent = sum(ranks.gather(sum(r["bytes"] for r in rows if (r["kind"], r["direction"]) == (kind, "sent"))))
        assert sent == pytest.approx(figures.get(f"predicted_bytes.{kind}", 0.0), rel=0.001), kind


def assert_evaluates_like(alone: InnerOptimizer, engine: SequenceEngine, config: Config) -> None:
    """All ranks together, each within its budget."""
    lengths = tuple(length for batch in batches() for length in batch.document_lengths)
    validation = [Batch(torch.cat([batch.tokens for batch in batches()]), lengths)]
    expected, num_targets = alone.engine.evaluate(validation)
    with budget_of(engine, config):
        total, targets = engine.evaluate(validation)
    assert sum(engine.ranks.gather(total)) == pytest.approx(expected, rel=1e-10)
    assert sum(engine.ranks.gather(targets)) == num_targets


@contextmanager
def budget_of(engine: SequenceEngine, config: Config) -> Iterator[None]:
    """Fails when a rank runs the model on more tokens than it may hold."""
    most = tokens_per_rank(config, config.replica[0], config.model.heads)
    seen = list[int]()
    hook = engine.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].numel()))
    yield
    hook.remove()
    assert 0 < max(seen) <= most


@pytest.mark.parametrize(
    ("count", "shard", "planners"),
    [
        (2, False, ("off", "static:2", "adaptive")),
        (3, True, ("best-homogeneous", "adaptive")),
        pytest.param(4, False, ("static:1", "static:4", "best-homogeneous", "adaptive"), marks=pytest.mark.full_matrix),
        pytest.param(4, True, ("static:1", "static:2", "adaptive"), marks=pytest.mark.full_matrix),
    ],
)
def test_the_loss_curve_is_that_of_one_process_whoever_plans(
    count: int, shard: bool, planners: tuple[str, ...], tmp_path: Path
) -> None:
    run_on_ranks(count, tmp_path, curves, tmp_path, shard, planners)


def test_a_model_of_too_few_heads_is_refused_before_anybody_waits(tmp_path: Path) -> None:
    """Where the config alone cannot tell, because the model's own config is elsewhere."""
    LlamaConfig(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, bos_token_id=None, eos_token_id=None
    ).save_pretrained(tmp_path)
    config = config_of(4, "static:4")
    config = config.model_copy(update={"model": ModelConfig(path=str(tmp_path))})
    with (
        Ledger(tmp_path / "ledger.jsonl", "a") as ledger,
        pytest.raises(ConfigError, match="choose static:1, static:2"),
    ):
        sequence_engine(config, config.replica[0], torch.nn.Linear(1, 1), tmp_path, ledger)


def test_a_model_that_drops_attention_is_refused_before_the_ranks_meet(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    LlamaConfig(**sizes, vocab_size=16, attention_dropout=0.1).save_pretrained(tmp_path / "model")
    config = config_of(2, "adaptive")
    config = config.model_copy(update={"model": ModelConfig(path=str(tmp_path / "model"))})
    with (
        Ledger(tmp_path / "ledger.jsonl", "a.0") as ledger,
        pytest.raises(ConfigError, match=r"attention_dropout = 0\.1.*set it to 0"),
    ):
        sequence_engine(config, config.replica[0], torch.nn.Linear(1, 1), tmp_path, ledger)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 12),
    st.sampled_from([1, 2, 3, 6, 8]),
    st.integers(1, 3),
    st.integers(2, 700),
    st.sampled_from(["adaptive", "best-homogeneous", "static:1", "static:2"]),
)
def test_the_budget_left_to_us_holds_every_document(
    ranks: int, heads: int, documents: int, tokens: int, planner: str
) -> None:
    config = Config.model_construct(
        data=DataConfig(sequence_tokens=tokens),
        inner=InnerConfig(batch_tokens=documents * tokens),
        sequence=SequenceConfig(planner=planner),
    )
    replica = ReplicaConfig(id="a", ranks=ranks)
    if next(sharing_problems(config, replica, heads), None) is not None:
        assert (planner, heads) == ("static:2", 1)
        return
    seen = Ranks.equal(ranks, tokens_per_rank(config, replica, heads), max_degree=heads)
    plan_step([tokens] * documents, seen, REFERENCE_7B, planner=planner)
