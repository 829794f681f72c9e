"""Batches hold each token of their lease once, in documents that know where they begin and end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comms.leases import LeaseBook, Segment, without
from dist_train.data.batches import (
    NO_TARGET,
    Batch,
    balanced_micro_batches,
    batches_of,
    micro_batches,
    validation_batches,
    window_batches,
)
from dist_train.data.corpus import Corpus
from dist_train.data.pieces import cut_into_pieces
from dist_train.data.stream import Stream

SEQUENCE_TOKENS = 8


def corpus_of(lengths: list[int], validation: list[int] | None = None) -> Corpus:
    """Token t is its own position; pieces of `lengths` to train on, then pieces of `validation`."""
    every = np.array([*lengths, *(validation or [2])], dtype=np.int64)
    starts, n = np.cumsum(every) - every, len(lengths)
    return Corpus(
        np.arange(every.sum(), dtype=np.uint16),
        cut_into_pieces(starts[:n], every[:n], SEQUENCE_TOKENS),
        cut_into_pieces(starts[n:], every[n:], SEQUENCE_TOKENS),
        fingerprint="",
    )


def documents_of(batch: Batch) -> list[list[int]]:
    return [document.tolist() for document in torch.split(batch.tokens, list(batch.document_lengths))]


def training_documents(corpus: Corpus) -> list[list[int]]:
    return [list(range(s, s + n)) for s, n in zip(corpus.training.starts, corpus.training.lengths, strict=True)]


lengths_ = st.lists(st.integers(1, 20), min_size=1, max_size=15)


@given(lengths_, st.integers(1, 9), st.integers(0, 3))
def test_batches_conserve_the_pieces_of_their_lease(lengths: list[int], steps: int, seed: int) -> None:
    corpus = corpus_of(lengths)
    stream = Stream(corpus, seed)
    batches = list(batches_of(stream, (Segment(0, 0, stream.tokens_per_epoch),), steps))
    assert sorted(d for batch in batches for d in documents_of(batch)) == sorted(training_documents(corpus))
    assert 1 <= len(batches) <= steps
    for batch in batches:
        assert batch.tokens.dtype == torch.int64
        assert list(batch.document_lengths) == sorted(batch.document_lengths, reverse=True)
        assert abs(batch.num_tokens - stream.tokens_per_epoch / steps) <= SEQUENCE_TOKENS


def test_batches_follow_the_stream() -> None:
    corpus = corpus_of([8] * 12)
    stream = Stream(corpus, 0)
    lease = (Segment(0, 0, stream.tokens_per_epoch),)
    firsts = [d[0] for batch in batches_of(stream, lease, 4) for d in documents_of(batch)]
    assert firsts == stream.pieces_of(lease).starts.tolist()


def test_a_lease_without_pieces_has_no_batches() -> None:
    assert list(batches_of(Stream(corpus_of([8, 8]), 0), (Segment(0, 1, 2),), 5)) == []


def test_positions_and_targets_restart_in_each_document() -> None:
    batch = Batch(torch.tensor([10, 11, 12, 20, 21, 30]), (3, 2, 1))
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0]
    assert batch.targets.tolist() == [11, 12, NO_TARGET, 21, NO_TARGET, NO_TARGET]
    assert (batch.num_tokens, batch.num_targets) == (6, 3)


@pytest.mark.parametrize("lengths", [(3, 2), (3, 4), (6, 0), (7, -1)])
def test_lengths_that_do_not_describe_the_tokens_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1 each, and 6 in all"):
        Batch(torch.arange(6), lengths)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(9, 30))
def test_micro_batches_conserve_documents_within_their_bound(lengths: list[int], most: int) -> None:
    batch = Batch(torch.arange(sum(lengths)), tuple(lengths))
    parts = micro_batches(batch, most)
    assert [d for part in parts for d in documents_of(part)] == documents_of(batch)
    assert max(part.num_tokens for part in parts) <= most
    assert sum(part.num_targets for part in parts) == batch.num_targets


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_balanced_micro_batches_conserve_documents_and_differ_by_one_at_most(lengths: list[int], count: int) -> None:
    lengths.sort(reverse=True)
    batch = Batch(torch.arange(1, sum(lengths) + 1), tuple(lengths))  # no token is 0: fillings are
    parts = balanced_micro_batches(batch, count)
    assert len(parts) == count
    found = [document for part in parts for document in documents_of(part) if document != [0]]
    assert sorted(found) == sorted(documents_of(batch))
    assert sum(part.num_targets for part in parts) == batch.num_targets
    held = [part.num_tokens for part in parts]
    assert max(held) - min(held) <= max(lengths)


def test_a_batch_that_fits_is_not_cut() -> None:
    batch = Batch(torch.arange(6), (3, 3))
    assert micro_batches(batch, None) == [batch] == micro_batches(batch, 6)


def test_a_document_longer_than_a_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 tokens does not fit .* 4; raise inner.micro_batch_tokens"):
        micro_batches(Batch(torch.arange(6), (5, 1)), 4)


@given(
    st.lists(st.integers(2, 20), min_size=1, max_size=12), st.integers(2, 100), st.integers(1, 30), st.integers(1, 6)
)
def test_shares_of_the_validation_are_disjoint_and_their_union_is_always_the_same(
    lengths: list[int], most: int, batch_tokens: int, count: int
) -> None:
    corpus = corpus_of([2], validation=lengths)
    shares = [validation_batches(corpus, most, batch_tokens, (position, count)) for position in range(count)]
    tokens = [token for share in shares for batch in share for token in batch.tokens.tolist()]
    assert sorted(tokens) == list(range(2, 2 + min(most, sum(lengths))))
    assert all(b.num_tokens <= max(batch_tokens, SEQUENCE_TOKENS) for share in shares for b in share)


def test_validation_is_evaluated_whole_by_one() -> None:
    (batch,) = validation_batches(corpus_of([2], validation=[5, 9]), 100, 100)
    assert batch.document_lengths == (8, 5, 1)


@given(lengths_, st.integers(1, 5), st.integers(1, 60), st.integers(0, 60))
def test_a_round_that_was_cut_off_is_done_again_with_the_same_batches(
    lengths: list[int], steps: int, lease_tokens: int, granted_before: int
) -> None:
    stream = Stream(corpus_of(lengths), 3)
    book, _ = LeaseBook(stream.tokens_per_epoch).grant(granted_before)
    _, lease = book.grant(min(lease_tokens, stream.tokens_per_epoch))
    whole = list(window_batches(stream, lease, steps, 2 * SEQUENCE_TOKENS))
    assert len(whole) <= steps
    documents = sorted(d for batch in batches_of(stream, lease, steps) for d in documents_of(batch))
    assert sorted(d for batch, _ in whole for d in documents_of(batch)) == documents
    for taken in range(1, len(whole) + 1):
        trained = without(lease, whole[taken - 1][1])
        again = list(window_batches(stream, trained, steps, 2 * SEQUENCE_TOKENS))
        assert [documents_of(batch) for batch, _ in again] == [documents_of(batch) for batch, _ in whole[:taken]]
