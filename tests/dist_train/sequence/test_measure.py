"""Every case is measured on every group, and nothing of the model is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dist_train.config import ModelConfig
from dist_train.model import build_model
from dist_train.sequence.groups import RankGroups
from dist_train.sequence.measure import calibration_cases, measure, measure_reduction
from tests.ranks import run_on_ranks

TINY = ModelConfig(hidden_size=16, layers=1, heads=2, kv_heads=1, vocab_size=16, intermediate_size=16)


def test_cases_reach_every_degree_that_the_heads_allow() -> None:
    cases = calibration_cases(6, 4, 64)
    assert {degree for _, degree in cases} == {1, 2, 4}
    assert {degree for _, degree in calibration_cases(6, 3, 64)} == {1, 2}
    assert max(sum(lengths) for lengths, _ in cases) == 256
    assert all(sum(lengths) <= 64 * degree and min(lengths) >= 1 for lengths, degree in cases)


def samples(ranks: RankGroups) -> None:
    model = build_model(TINY, seed=0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    found = measure(model, ranks, [((8, 3), 1), ((1,), 2)], repeats=1)
    wanted = [((8, 3), 1, (0,)), ((8, 3), 1, (1,)), ((8, 3), 1, (2,)), ((1,), 2, (0, 1))]
    assert [(sample.lengths, sample.degree, sample.ranks) for sample in found] == wanted
    assert all(sample.seconds > 0 for sample in found)
    assert ranks.broadcast([sample.seconds for sample in found]) == [sample.seconds for sample in found]
    assert measure_reduction(model, ranks, repeats=1) > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ValueError, match="Degree 4 cannot be measured with 3 ranks, 2 heads"):
        measure(model, ranks, [((8,), 4)])


def test_samples_of_three_ranks(tmp_path: Path) -> None:
    run_on_ranks(3, tmp_path, samples)
