"""What the outer round must be equal to, shown on whole runs over real gRPC."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from comms.leases import LeaseBook, Segment, merge
from dist_train.config import Config
from dist_train.data.batches import batches_of
from dist_train.data.corpus import open_corpus
from dist_train.data.stream import Stream
from dist_train.inner import InnerOptimizer
from dist_train.model import build_model
from dist_train.run_directory import RunDirectory
from tests.running import metrics, run, theta, tiny, write_corpus

EVERYTHING = {"chunk": 256, "k": 256, "value_bits": 32, "error_decay": 0.0, "aggregate": "mean"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_sending_every_value_equals_diloco_without_momentum_bit_for_bit(tmp_path: Path, source: str) -> None:
    sparse = run(tiny(tmp_path / "sparse", source, outer={"rounds": 3, "lr": 0.7}, sparseloco=EVERYTHING))
    dense = run(tiny(tmp_path / "dense", source, outer={"rounds": 3, "method": "diloco", "lr": 0.7, "momentum": 0.0}))
    assert [row["theta_digest"] for row in metrics(sparse)] == [row["theta_digest"] for row in metrics(dense)]


@pytest.mark.parametrize("method", ["sparseloco", "diloco", "ddp"])
@pytest.mark.parametrize("route", ["direct", "relay"])
def test_replicas_agree_after_every_round(tmp_path: Path, source: str, method: str, route: str) -> None:
    config = tiny(tmp_path, source, replicas=3, outer={"method": method, "rounds": 2}, exchange={"route": route})
    rows = metrics(run(config))
    assert [row["round"] for row in rows] == list(range(1, config.rounds + 1))
    assert all(row["agreed"] and row["contributors"] == ["a", "b", "c"] for row in rows)
    assert len({row["theta_digest"] for row in rows}) == len(rows), "every round changes the parameters"


def plain_training(config: Config, directory: RunDirectory) -> dict[str, torch.Tensor]:
    """H steps a round on one replica's leases, with torch alone: no exchange, no outer step."""
    corpus = open_corpus(config.data, vocab_size=256, seed=config.run.seed, directory=directory.corpus)
    model = build_model(config.model, config.run.seed)
    inner = InnerOptimizer(model, config.inner, config.total_steps)
    stream, book = Stream(corpus, config.run.seed), LeaseBook(corpus.tokens_per_epoch)
    for _ in range(config.rounds):
        book, lease = book.grant(config.steps_per_round * config.inner.batch_tokens)
        for batch in batches_of(stream, lease, config.steps_per_round):
            inner.accumulate(batch)
            inner.step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", ["ddp", "diloco"])
def test_one_replica_that_sends_everything_equals_plain_training(tmp_path: Path, source: str, method: str) -> None:
    outer = {"method": method, "rounds": 4} | ({"lr": 1.0, "momentum": 0.0} if method == "diloco" else {})
    config = tiny(tmp_path, source, replicas=1, outer=outer)
    directory = run(config)
    _, trained = theta(directory)
    for name, parameter in plain_training(config, directory).items():
        if method == "ddp":
            assert torch.equal(trained[name], parameter), name
        else:  # theta - (theta - theta_r) rounds twice where theta_r does not
            torch.testing.assert_close(trained[name], parameter, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("method", ["sparseloco", "diloco"])
def test_a_window_ends_the_inner_steps_and_what_was_not_reached_is_handed_out_again(
    tmp_path: Path, source: str, method: str
) -> None:
    config = tiny(
        tmp_path, source, inner={"seconds": 0.05, "steps": 80, "batch_tokens": 64},
        outer={"method": method, "rounds": 3}, sparseloco={"aggregate": "weighted"},
    )  # fmt: skip
    directory = run(config)
    rows = metrics(directory)
    assert all(row["agreed"] and row["contributors"] == ["a", "b"] for row in rows)
    with closing(sqlite3.connect(directory.journal)) as database:
        [(state,)] = database.execute("SELECT json FROM state").fetchall()
        committed = [json.loads(row) for (row,) in database.execute("SELECT json FROM committed ORDER BY round")]
    trained = [segment for one in committed for lease in one["leases"].values() for segment in lease]
    num_tokens = sum(segment["stop"] - segment["start"] for segment in trained)
    assert num_tokens < 3 * 2 * 80 * 64, "some window was too short for all 80 steps"
    held = [segment for lease in json.loads(state)["leases"].values() for segment in lease]
    left = json.loads(state)["book"]["returned"]
    everything = merge(tuple(Segment(**segment) for segment in [*trained, *held, *left]))
    assert all(before.stop <= after.start for before, after in pairwise(everything) if before.epoch == after.epoch)
    for one, row in zip(committed, rows, strict=True):
        assert {e["replica"]: e["weight_tokens"] for e in one["manifest"]} == row["tokens"]
