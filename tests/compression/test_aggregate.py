"""Aggregation against oracles: the right value, and the same bits wherever it is computed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.aggregate import Rule, aggregate, guard_factors, norm
from compression.codec import Update
from compression.dense import DenseCodec
from compression.sparse import SparseCodec

pytestmark = pytest.mark.timeout(60)

RULES: list[Rule] = ["mean", "contributors", "weighted"]
N = 40


def sparse(places: list[int], values: list[float]) -> Update:
    return Update(torch.tensor(places), torch.tensor(values))


def drawn(replicas: int, seed: int, n: int = N) -> list[Update]:
    """Sparse and dense updates in turn, of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for r in range(replicas):
        values = torch.randn(n, generator=generator) * 10.0 ** (r - 2)
        places = torch.randperm(n, generator=generator)[: n // 3].sort().values
        updates.append(Update(None, values) if r % 3 == 2 else Update(places, values[places].contiguous()))
    return updates


def dense_values(update: Update, n: int = N) -> np.ndarray:
    flat = np.zeros(n, np.float32)
    flat[slice(None) if update.positions is None else update.positions.numpy()] = update.values.numpy()
    return flat


@settings(max_examples=80, deadline=None, print_blob=True)
@given(
    st.integers(1, 7).flatmap(
        lambda r: st.tuples(st.just(r), st.lists(st.integers(1, 10**12), min_size=r, max_size=r))
    ),
    st.sampled_from(RULES),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_oracle_in_fp64_and_bit_for_bit_in_fp32(
    replicas: tuple[int, list[int]], rule: Rule, guard: bool, seed: int
) -> None:
    count, weights = replicas
    updates = drawn(count, seed)
    got = aggregate(updates, weights, rule, N, guard).numpy()

    norms = [float(np.linalg.norm(dense_values(u).astype(np.float64))) for u in updates]
    median = sorted(norms)[(count - 1) // 2]
    scales = [min(1.0, median / n) if guard else 1.0 for n in norms]
    shares = [w / sum(weights) for w in weights] if rule == "weighted" else [1.0] * count
    touched = sum(np.isin(np.arange(N), np.arange(N) if u.positions is None else u.positions.numpy()) for u in updates)
    divisor = {"mean": np.full(N, count), "contributors": np.maximum(touched, 1), "weighted": np.ones(N)}[rule]
    oracle = sum(dense_values(u).astype(np.float64) * s * w for u, s, w in zip(updates, scales, shares, strict=True))
    bound = sum(np.abs(dense_values(u).astype(np.float64)) for u in updates) / divisor
    assert (np.abs(got - oracle / divisor) <= bound * 1e-4 + 1e-30).all()

    factors = guard_factors(updates) if guard else [1.0] * count
    step = np.zeros(N, np.float32)
    for update, factor, share in zip(updates, factors, shares, strict=True):
        step += dense_values(update) * np.float32(factor * share)
    np.testing.assert_array_equal(got, step / divisor.astype(np.float32))


def test_golden_each_rule_by_hand() -> None:
    updates = [sparse([0, 2], [6.0, 2.0]), sparse([0, 1], [2.0, 4.0]), Update(None, torch.tensor([1.0, 0, 0, 3]))]
    weights = [1, 2, 1]
    assert aggregate(updates, weights, "mean", 4, False).tolist() == [3, np.float32(4 / 3), np.float32(2 / 3), 1]
    assert aggregate(updates, weights, "contributors", 4, False).tolist() == [3, 2, 1, 3]
    assert aggregate(updates, weights, "weighted", 4, False).tolist() == [2.75, 2, 0.5, 0.75]


def test_golden_the_guard_scales_down_to_the_median_norm() -> None:
    updates = [sparse([0], [1.0]), sparse([0, 1], [3.0, 4.0]), sparse([0], [100.0])]
    assert guard_factors(updates) == pytest.approx([1, 1, 0.05], rel=1e-12)
    assert aggregate(updates, [1] * 3, "mean", 2, True).tolist() == [3, np.float32(4 / 3)]


def test_golden_of_an_even_number_the_lower_middle_counts() -> None:
    """Of two replicas, one gone mad must not set the measure."""
    assert guard_factors([sparse([0], [1e6]), sparse([0], [2.0])]) == pytest.approx([2e-6, 1])
    four = [sparse([0], [v]) for v in (8.0, 1.0, 2.0, 4.0)]
    assert guard_factors(four) == pytest.approx([0.25, 1, 1, 0.5])


def test_a_silent_replica_does_not_silence_the_others() -> None:
    updates = [sparse([0], [0.0]), sparse([0], [0.0]), sparse([0], [3.0])]
    assert guard_factors(updates) == [1, 1, 1]
    assert guard_factors(updates[:2]) == [1, 1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("guard", [False, True])
def test_with_one_replica_every_rule_returns_its_update(rule: Rule, guard: bool) -> None:
    for update in drawn(3, 0):
        got = aggregate([update], [12_345], rule, N, guard).numpy()
        np.testing.assert_array_equal(got, dense_values(update))


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_equality_k_of_the_whole_chunk_in_fp32_is_the_dense_mean_bit_for_bit(replicas: int) -> None:
    shapes = {"w": (70, 33), "b": (9,)}
    sparse_codec, dense_codec = SparseCodec(64, 64, 32), DenseCodec("fp32")
    chunked, flat = sparse_codec.layout(shapes), dense_codec.layout(shapes)
    generator = torch.Generator().manual_seed(0)
    models = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(replicas)]
    a = [sparse_codec.decode(sparse_codec.encode(chunked.pack(model), chunked), chunked) for model in models]
    b = [dense_codec.decode(dense_codec.encode(flat.pack(model), flat), flat) for model in models]
    ones = [1] * replicas
    for rule in RULES[:2]:
        one = chunked.unpack(aggregate(a, ones, rule, chunked.num_values, False))
        other = flat.unpack(aggregate(b, ones, "mean", flat.num_values, False))
        assert all(torch.equal(one[name], other[name]) for name in shapes)


def test_threads_and_slabs_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = drawn(5, 1, n=300_000)
    whole = [aggregate(updates, [1, 2, 3, 4, 5], rule, 300_000, True) for rule in RULES]
    monkeypatch.setattr("compression.aggregate._SLAB_VALUES", 1009)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        parts = [aggregate(updates, [1, 2, 3, 4, 5], rule, 300_000, True) for rule in RULES]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    st.randoms(use_true_random=False),
)
def test_the_norm_is_close_and_the_same_in_any_order(values: list[float], random: object) -> None:
    got = norm(torch.tensor(values))
    exact = math.sqrt(float(sum(Fraction(v) ** 2 for v in values) / Fraction(2) ** 100)) * 2.0**50
    assert got == pytest.approx(exact, rel=1e-9, abs=0)
    random.shuffle(values)  # type: ignore[attr-defined]
    assert norm(torch.tensor(values)) == got


def test_the_norm_of_a_large_fragment_is_as_exact_as_stated() -> None:
    values = torch.randn(3_000_000, generator=torch.Generator().manual_seed(0))
    values[0] = 1e4
    exact = float(values.double().square().sum().sqrt())
    assert norm(values) == pytest.approx(exact, rel=2**-15)


def test_what_does_not_fit_together_is_refused() -> None:
    one = sparse([0], [1.0])
    with pytest.raises(ValueError, match="1 updates and 2 weights"):
        aggregate([one], [1, 2], "mean", 1, False)
    with pytest.raises(ValueError, match="0 updates and 0 weights"):
        aggregate([], [], "mean", 1, False)
    with pytest.raises(ValueError, match="rule = 'median' does not exist"):
        aggregate([one], [1], "median", 1, False)  # type: ignore[arg-type]
    for weights, rule in (([0], "weighted"), ([-1], "mean")):
        with pytest.raises(ValueError, match="tokens are not negative"):
            aggregate([one], weights, rule, 1, False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="A dense update of 3 values; the fragment has 4"):
        aggregate([Update(None, torch.ones(3))], [1], "mean", 4, False)
