"""No token of the corpus is handed out twice, and none is forgotten, whoever gives back what."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from comms.leases import Lease, LeaseBook, Segment, merge, tail, without

EPOCH_TOKENS = 50
sizes = st.integers(1, 120)


def tokens_of(lease: Lease) -> list[tuple[int, int]]:
    """Every token of a lease: its epoch and position."""
    return [(s.epoch, position) for s in lease for position in range(s.start, s.stop)]


def first_tokens(count: int) -> list[tuple[int, int]]:
    return [divmod(token, EPOCH_TOKENS) for token in range(count)]


@given(st.integers(1, 9), st.lists(st.integers(1, 30), max_size=20))
def test_grants_cover_each_epoch_once_and_in_order(tokens_per_epoch: int, grants: list[int]) -> None:
    book, granted = LeaseBook(tokens_per_epoch), list[tuple[int, int]]()
    for num_tokens in grants:
        book, lease = book.grant(num_tokens)
        assert len(tokens_of(lease)) == num_tokens
        granted += tokens_of(lease)
    assert granted == [divmod(token, tokens_per_epoch) for token in range(sum(grants))]


@given(st.data())
def test_held_consumed_and_returned_are_all_that_was_granted_each_once(data: st.DataObject) -> None:
    book, held, consumed = LeaseBook(EPOCH_TOKENS), list[Lease](), list[Lease]()
    for _ in range(data.draw(st.integers(1, 15))):
        what = data.draw(st.sampled_from(["grant", "give back", "consume"]))
        if what == "grant" or not held:
            num_tokens = data.draw(sizes)
            book, lease = book.grant(num_tokens)
            assert len(tokens_of(lease)) == num_tokens
            held.append(lease)
        elif what == "give back":
            book = book.give_back(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            consumed.append(held.pop(data.draw(st.integers(0, len(held) - 1))))
        everything = [token for lease in [*held, *consumed, book.returned] for token in tokens_of(lease)]
        assert sorted(everything) == first_tokens(book.epoch * EPOCH_TOKENS + book.position)


@given(sizes, sizes)
def test_what_came_back_is_granted_before_anything_new(first: int, second: int) -> None:
    book, lease = LeaseBook(EPOCH_TOKENS).grant(first)
    _, again = book.give_back(lease).grant(second)
    assert tokens_of(again) == first_tokens(second)


@given(sizes, st.integers(0, 200), st.integers(1, 100))
def test_what_was_never_granted_can_not_be_given_back(granted: int, start: int, length: int) -> None:
    book, lease = LeaseBook(EPOCH_TOKENS).grant(granted)
    epoch, position = divmod(start, EPOCH_TOKENS)
    foreign = Segment(epoch, position, min(EPOCH_TOKENS, position + length))
    assume(not set(tokens_of((foreign,))) <= set(tokens_of(lease)))
    with pytest.raises(ValueError, match="never granted"):
        book.give_back((foreign,))


@given(sizes, st.data())
def test_nothing_can_be_given_back_twice(granted: int, data: st.DataObject) -> None:
    book, lease = LeaseBook(EPOCH_TOKENS).grant(granted)
    book = book.give_back(lease)
    segment = data.draw(st.sampled_from(lease))
    start = data.draw(st.integers(segment.start, segment.stop - 1))
    part = Segment(segment.epoch, start, data.draw(st.integers(start + 1, segment.stop)))
    with pytest.raises(ValueError, match="given back already"):
        book.give_back((part,))
    with pytest.raises(ValueError, match="given back already"):
        book.give_back(lease)


@pytest.mark.parametrize("segment", [Segment(0, 3, 3), Segment(0, 5, 3), Segment(0, -2, 1), Segment(0, 40, 60)])
def test_a_segment_that_is_none_can_not_be_given_back(segment: Segment) -> None:
    book, _ = LeaseBook(EPOCH_TOKENS).grant(2 * EPOCH_TOKENS)
    with pytest.raises(ValueError, match="no segment of an epoch"):
        book.give_back((segment,))


def test_two_overlapping_segments_of_one_lease_are_refused() -> None:
    book, _ = LeaseBook(EPOCH_TOKENS).grant(10)
    with pytest.raises(ValueError, match="given back already"):
        book.give_back((Segment(0, 0, 6), Segment(0, 4, 8)))


segments = st.builds(
    lambda epoch, start, length: Segment(epoch, start, start + length), st.integers(0, 2), sizes, st.integers(1, 9)
)


@given(st.lists(segments, max_size=12))
def test_merge_keeps_every_token_and_leaves_no_neighbours(parts: list[Segment]) -> None:
    merged = merge(tuple(parts))
    assert sorted(tokens_of(merged)) == sorted(tokens_of(tuple(parts)))
    assert list(merged) == sorted(merged)
    assert merge(merged) == merged


@given(st.data())
def test_a_lease_is_what_was_trained_and_the_rest_behind_it(data: st.DataObject) -> None:
    book = LeaseBook(EPOCH_TOKENS)
    for _ in range(data.draw(st.integers(0, 3))):
        book, _ = book.grant(data.draw(sizes))
    book, lease = book.grant(data.draw(sizes))
    place = data.draw(st.sampled_from(tokens_of(lease)))
    rest = tail(lease, *place)
    assert tokens_of(rest) == [token for token in tokens_of(lease) if token >= place]
    assert tokens_of(without(lease, rest)) == [token for token in tokens_of(lease) if token < place]


@pytest.mark.parametrize("rest", [(Segment(0, 9, 11),), (Segment(1, 3, 4),), (Segment(0, 3, 4), Segment(0, 5, 6))])
def test_what_is_not_of_a_lease_cannot_be_taken_from_it(rest: Lease) -> None:
    with pytest.raises(ValueError, match="not in the lease|are not a rest"):
        without((Segment(0, 0, 10),), rest)
