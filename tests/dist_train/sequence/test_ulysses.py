"""Tokens and heads are shared out once each, in shares that differ by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.sequence.ulysses import all_to_all_bytes, head_shares, share_of


@given(st.integers(0, 1000), st.integers(1, 64))
def test_shares_are_disjoint_complete_and_differ_by_one(total: int, degree: int) -> None:
    shares = [share_of(total, position, degree) for position in range(degree)]
    assert [thing for share in shares for thing in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 16), st.integers(1, 8), st.data())
def test_every_query_head_meets_its_own_key_value_head(kv_heads: int, served: int, data: st.DataObject) -> None:
    heads = kv_heads * served
    shares = head_shares(heads, kv_heads, data.draw(st.integers(1, heads)))
    assert [head for share in shares for head in share.query] == list(range(heads))
    for share in shares:
        found = [share.key_value[place] for place in share.partner]
        assert found == [head // served for head in share.query]
        assert set(found) == set(share.key_value)  # none is sent where it is not needed
        if share.is_grouped:
            size = len(share.query) // len(share.key_value)
            assert list(share.partner) == [place // size for place in range(len(share.query))]


def test_heads_by_hand() -> None:
    """Six query heads, three for each of two key-value heads, on four ranks."""
    shares = head_shares(6, 2, 4)
    assert [list(share.query) for share in shares] == [[0], [1, 2], [3], [4, 5]]
    assert [list(share.key_value) for share in shares] == [[0], [0], [1], [1]]
    halves = head_shares(12, 3, 2)
    assert [half.partner for half in halves] == [(0, 0, 0, 0, 1, 1), (0, 0, 1, 1, 1, 1)]
    assert not any(half.is_grouped for half in halves)


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="8 ranks cannot share 6 query heads: .*plan with degrees up to 6"):
        head_shares(6, 2, 8)


def test_bytes_by_hand() -> None:
    """Two ranks, 10 tokens, 4 heads, 2 key-value heads of 8 numbers: each sends 5 of half the heads, and back."""
    one_layer_forward = 2 * 5 * (2 + 1 + 1 + 2) * 8 * 4
    facts = {"heads": 4, "kv_heads": 2, "head_dim": 8, "value_bytes": 4}
    assert all_to_all_bytes(10, 2, layers=3, **facts) == 2 * 3 * one_layer_forward
    assert all_to_all_bytes(10, 1, layers=3, **facts) == 0
