"""Properties of a deal: nothing is lost, nothing twice, and no hand is far above the best possible."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from dist_train.dealing import dealt

Loads = st.lists(st.integers(0, 50), max_size=7)


@given(Loads, st.integers(1, 4))
def test_conservation(loads: list[int], hands: int) -> None:
    found = dealt(loads, hands)
    assert len(found) == hands
    assert sorted(index for hand in found for index in hand) == list(range(len(loads)))


@given(Loads, st.integers(1, 3))
def test_no_hand_is_further_above_the_best_deal_than_graham_proved(loads: list[int], hands: int) -> None:
    fullest = max(sum(loads[i] for i in hand) for hand in dealt(loads, hands))
    best = min(
        max(sum(load for load, hand in zip(loads, to, strict=True) if hand == h) for h in range(hands))
        for to in product(range(hands), repeat=len(loads))
    )
    assert 3 * hands * fullest <= (4 * hands - 1) * best


def test_golden() -> None:
    assert dealt([3, 5, 5, 1], 2) == [[1, 0], [2, 3]], "5 and 5 first, then 3 to the first of the two, then 1"
