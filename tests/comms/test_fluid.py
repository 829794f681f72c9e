"""Fluids: max-min fair by hand and by definition, and when the last byte is through."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from comms.fluid import FluidLinks, Limits, max_min_rates

INF = math.inf


def rates_of(up: list[float], down: list[float], paths: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    size = len(up)
    cap, busy = np.full((size, size), INF), np.zeros((size, size), dtype=bool)
    for path, limit in paths.items():
        cap[path], busy[path] = limit, True
    found = max_min_rates(np.array(up), np.array(down), cap, busy)
    assert not found[~busy].any()
    return {path: float(found[path]) for path in paths}


def test_by_hand() -> None:
    # Two flows into 2 share its 6; what 0 has left of its 10 goes to 3.
    assert rates_of([10, 10, 10, 10], [10, 10, 6, 10], {(0, 2): INF, (1, 2): INF, (0, 3): INF}) == {
        (0, 2): 3, (1, 2): 3, (0, 3): 7,
    }  # fmt: skip
    # A path that is narrow leaves its part to its neighbours.
    assert rates_of([9, 9, 9], [9, 9, 9], {(0, 1): 1, (0, 2): INF}) == {(0, 1): 1, (0, 2): 8}
    assert rates_of([INF, INF], [INF, INF], {(0, 1): INF}) == {(0, 1): INF}
    assert rates_of([4, 4], [4, 4], {(0, 1): 0, (1, 0): INF}) == {(0, 1): 0, (1, 0): 4}


limits = st.sampled_from([1.0, 2.0, 3.5, 5.0, 20.0, INF])
SIZE = 5


@given(
    arrays(np.float64, SIZE, elements=limits),
    arrays(np.float64, SIZE, elements=limits),
    arrays(np.float64, (SIZE, SIZE), elements=st.sampled_from([0.5, 1.0, 4.0, INF])),
    arrays(np.bool_, (SIZE, SIZE)),
    st.permutations(range(SIZE)),
)
@settings(max_examples=40, deadline=None)
def test_every_path_has_a_limit_that_is_used_up_and_on_which_none_has_more(
    up: np.ndarray, down: np.ndarray, cap: np.ndarray, busy: np.ndarray, order: list[int]
) -> None:
    rates = max_min_rates(up, down, cap, busy)
    near = 1e-9
    assert (rates.sum(1) <= up + near).all()
    assert (rates.sum(0) <= down + near).all()
    assert (rates <= cap + near).all()
    for i, j in np.argwhere(busy):
        rate = rates[i, j]
        if math.isinf(rate):
            assert up[i] == down[j] == cap[i, j] == INF
            continue
        by_up = up[i] < INF and abs(rates[i].sum() - up[i]) < near and rate >= rates[i].max() - near
        by_down = down[j] < INF and abs(rates[:, j].sum() - down[j]) < near and rate >= rates[:, j].max() - near
        assert by_up or by_down or rate >= cap[i, j] - near, (i, j)
    shuffled = max_min_rates(up[order], down[order], cap[np.ix_(order, order)], busy[np.ix_(order, order)])
    np.testing.assert_allclose(shuffled, rates[np.ix_(order, order)], rtol=1e-12)


def links(size: int, rate: float) -> FluidLinks:
    return FluidLinks(Limits(np.full(size, rate), np.full(size, rate), np.full((size, size), INF)))


def ends_of(fluid: FluidLinks, transfers: list[tuple[int, int, float, float]]) -> list[float]:
    """When each transfer (sender, receiver, bytes, start) is through."""
    ends = [INF] * len(transfers)
    now_s, todo = 0.0, sorted(range(len(transfers)), key=lambda index: transfers[index][3])

    def ended(index: int) -> None:
        ends[index] = now_s

    while todo or fluid.next_s < INF:
        start_s = transfers[todo[0]][3] if todo else INF
        now_s = min(start_s, fluid.next_s)
        if fluid.next_s <= start_s:
            fluid.finish(now_s)
        else:
            index = todo.pop(0)
            sender, receiver, num_bytes, _ = transfers[index]
            fluid.begin(sender, receiver, num_bytes, partial(ended, index), now_s)
    return ends


def test_when_transfers_are_through() -> None:
    assert ends_of(links(2, 8.0), [(0, 1, 10, 0.0)]) == [10.0]
    # Two streams of one path share it; the second is alone from 8 s on.
    assert ends_of(links(2, 8.0), [(0, 1, 4, 0.0), (0, 1, 6, 0.0)]) == [8.0, 10.0]
    # One that comes later finds half of the line.
    assert ends_of(links(3, 8.0), [(0, 1, 6, 0.0), (0, 2, 2, 4.0)]) == [8.0, 8.0]
    assert ends_of(links(2, INF), [(0, 1, 6, 3.0)]) == [3.0]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(1, 1e6), st.sampled_from([0.0, 1.0, 7.5])),
        min_size=1, max_size=12,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_and_no_line_is_beaten(transfers: list[tuple[int, int, float, float]]) -> None:
    rate = 8e3
    ends = ends_of(links(3, rate), transfers)
    assert all(end < INF for end in ends), "everything arrives"
    for line in range(3):
        for end_of_way in (0, 1):
            mine = [(t, e) for t, e in zip(transfers, ends, strict=True) if t[end_of_way] == line]
            if mine:
                began_s, over_s = min(t[3] for t, _ in mine), max(e for _, e in mine)
                assert 8 * sum(t[2] for t, _ in mine) <= rate * (over_s - began_s) * (1 + 1e-9)
    alone = [t[3] + 8 * t[2] / rate for t in transfers]
    assert all(end >= least * (1 - 1e-9) for end, least in zip(ends, alone, strict=True))


def test_limits_that_change_and_a_transfer_that_is_cancelled() -> None:
    fluid, ended = links(2, 8.0), list[str]()
    fluid.begin(0, 1, 10, lambda: ended.append("first"), 0.0)
    other = fluid.begin(0, 1, 10, lambda: ended.append("other"), 0.0)
    assert fluid.next_s == 20.0
    fluid.cancel(other, 4.0)  # two bytes of the first are through
    assert fluid.next_s == 12.0
    fluid.become(Limits(np.full(2, 4.0), np.full(2, 4.0), np.full((2, 2), INF)), 8.0)
    assert fluid.next_s == pytest.approx(16.0)
    fluid.finish(fluid.next_s)
    assert ended == ["first"]
    assert fluid.next_s == INF
