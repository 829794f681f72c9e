"""Every piece of an epoch has exactly one owner, in an order that only the seed decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.leases import Lease, LeaseBook, Segment
from dist_train.data.corpus import Corpus
from dist_train.data.pieces import cut_into_pieces, random_order
from dist_train.data.stream import Stream


def corpus_of(lengths: list[int], sequence_tokens: int = 8, held_back: int = 1) -> Corpus:
    """Token t is its own position, so that a piece says where it comes from; the first documents validate."""
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    validation = cut_into_pieces(starts[:held_back], np.array(lengths[:held_back]), sequence_tokens)
    training = cut_into_pieces(starts[held_back:], np.array(lengths[held_back:]), sequence_tokens)
    return Corpus(np.arange(sum(lengths), dtype=np.uint32), training, validation, fingerprint="")


def whole(stream: Stream, epoch: int) -> Lease:
    return (Segment(epoch, 0, stream.tokens_per_epoch),)


documents = st.lists(st.integers(1, 30), min_size=2, max_size=12)


@given(documents, st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=30), st.integers(0, 2**63 - 1))
def test_leases_own_each_piece_once_also_when_some_come_back(
    lengths: list[int], grants: list[tuple[int, bool]], seed: int
) -> None:
    corpus = corpus_of(lengths)
    stream, book, kept = Stream(corpus, seed), LeaseBook(corpus.tokens_per_epoch), list[Lease]()
    for num_tokens, comes_back in grants:
        book, lease = book.grant(num_tokens)
        if comes_back:
            book = book.give_back(lease)
        else:
            kept.append(lease)
    if book.returned:  # hand out the rest of what came back, then of the epoch
        book, lease = book.grant(sum(segment.num_tokens for segment in book.returned))
        kept.append(lease)
    book, lease = book.grant(book.tokens_per_epoch - book.position)
    kept.append(lease)

    owners = Counter(start for lease in kept for start in stream.pieces_of(lease).starts.tolist())
    assert owners == Counter(dict.fromkeys(corpus.training.starts.tolist(), book.epoch))
    assert not owners.keys() & set(corpus.validation.starts.tolist())


@given(documents, st.integers(0, 5))
def test_an_epoch_is_all_pieces_in_another_order(lengths: list[int], epoch: int) -> None:
    corpus = corpus_of(lengths)
    pieces = Stream(corpus, seed=3).pieces_of(whole(Stream(corpus, 3), epoch))
    assert sorted(zip(pieces.starts, pieces.lengths, strict=True)) == sorted(
        zip(corpus.training.starts, corpus.training.lengths, strict=True)
    )


@given(documents, st.data())
def test_neighbouring_leases_continue_each_other(lengths: list[int], data: st.DataObject) -> None:
    stream = Stream(corpus_of(lengths), seed=0)
    cut = data.draw(st.integers(0, stream.tokens_per_epoch))
    left = stream.pieces_of((Segment(0, 0, cut),)).starts.tolist()
    right = stream.pieces_of((Segment(0, cut, stream.tokens_per_epoch),)).starts.tolist()
    assert left + right == stream.pieces_of(whole(stream, 0)).starts.tolist()


def test_same_seed_same_stream_other_seed_or_epoch_another() -> None:
    corpus = corpus_of([8] * 100)

    def order(seed: int, epoch: int) -> bytes:
        stream = Stream(corpus, seed)
        return stream.pieces_of(whole(stream, epoch)).starts.tobytes()

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_epochs_may_be_asked_in_any_order() -> None:
    corpus = corpus_of([8] * 20)
    kept, fresh = Stream(corpus, 7), [Stream(corpus, 7) for _ in range(5)]
    for epoch in (4, 0, 3, 4, 1, 0, 2, 0, 4):
        expected = fresh[epoch].pieces_of(whole(kept, epoch)).starts
        assert np.array_equal(kept.pieces_of(whole(kept, epoch)).starts, expected)


def test_the_order_never_changes() -> None:
    """Golden: a run that is resumed after an upgrade must see the same stream."""
    assert random_order(10, seed=0, stream=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert random_order(10, seed=2**63 - 1, stream=2**64 - 1).tolist() == [8, 7, 0, 2, 5, 9, 3, 6, 1, 4]


def test_a_lease_of_another_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="reaches beyond an epoch of 8 tokens"):
        Stream(corpus_of([8, 8]), 0).pieces_of((Segment(0, 0, 9),))


def test_no_segments_own_nothing() -> None:
    assert len(Stream(corpus_of([8, 8]), 0).pieces_of(())) == 0
