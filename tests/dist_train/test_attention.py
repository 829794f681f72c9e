"""Packed documents attend as if each were alone, without a mask and without padding."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import AttentionInterface, AttentionMaskInterface

from dist_train.attention import PACKED, packed_attention
from dist_train.sequence.groups import SequenceGroup
from dist_train.sequence.traffic import RankTraffic

HEAD_DIM = 6
MODULE = nn.Identity()


def random_qkv(n: int, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 (1, heads, n, HEAD_DIM) each, laid out as a Llama's projections lay them out."""
    generator = torch.Generator().manual_seed(n)
    q, k, v = (
        torch.randn(1, n, h, HEAD_DIM, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_()
        for h in (heads, kv_heads, kv_heads)
    )
    return q, k, v


def alone(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The textbook: softmax(q k^T / sqrt(d)) v over each document's past, one document after the other."""
    repeats, outputs = q.shape[1] // k.shape[1], []
    for q1, k1, v1 in zip(*(torch.split(x, lengths, dim=2) for x in (q, k, v)), strict=True):
        scores = q1 @ k1.repeat_interleave(repeats, 1).transpose(2, 3) / math.sqrt(HEAD_DIM)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v1.repeat_interleave(repeats, 1))
    return torch.cat(outputs, dim=2).transpose(1, 2)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1, 1, 2, 5, 7, 13, 16, 31]), min_size=1, max_size=8),
    st.sampled_from([(4, 4), (4, 2), (6, 1), (1, 1)]),
)
def test_packed_equals_each_document_alone(lengths: list[int], heads: tuple[int, int]) -> None:
    q, k, v = random_qkv(sum(lengths), *heads)
    packed, weights = packed_attention(MODULE, q, k, v, None, document_lengths=lengths, scaling=HEAD_DIM**-0.5)
    expected = alone(q, k, v, lengths)
    assert weights is None
    assert packed.shape == expected.shape == (1, sum(lengths), heads[0], HEAD_DIM)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-12)

    upstream = torch.randn(packed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(packed, (q, k, v), upstream)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_it_is_registered_and_makes_no_mask() -> None:
    assert AttentionInterface()[PACKED] is packed_attention
    assert AttentionMaskInterface()[PACKED](batch_size=1, q_length=8, config=None) is None


@pytest.mark.parametrize("lengths", [[4, 3], [8, 1], []])
def test_lengths_that_do_not_fill_the_row_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"document_lengths sums to \d for 1 x 8 tokens; pack all"):
        packed_attention(MODULE, *random_qkv(8, 2, 2), None, document_lengths=lengths)


def test_two_rows_are_refused() -> None:
    q, k, v = (torch.cat([x, x]) for x in random_qkv(8, 2, 2))
    with pytest.raises(ValueError, match="sums to 8 for 2 x 8 tokens"):
        packed_attention(MODULE, q, k, v, None, document_lengths=[8])


def test_a_window_shorter_than_a_document_is_refused_and_one_that_cuts_nothing_is_not() -> None:
    q, k, v = random_qkv(8, 2, 2)
    packed_attention(MODULE, q, k, v, None, document_lengths=[4, 4], sliding_window=4)
    with pytest.raises(ValueError, match=r"8 tokens exceeds .* window of 7, .*sequence_tokens to 7"):
        packed_attention(MODULE, q, k, v, None, document_lengths=[8], sliding_window=7)


def test_what_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match="attention with softcap"):
        packed_attention(MODULE, *random_qkv(8, 2, 2), None, document_lengths=[8], softcap=50.0)
    with pytest.raises(ValueError, match="attention with s_aux"):
        packed_attention(MODULE, *random_qkv(8, 2, 2), None, document_lengths=[8], s_aux=torch.ones(2))


def test_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="attention with a mask"):
        packed_attention(MODULE, *random_qkv(8, 2, 2), torch.zeros(1, 1, 8, 8), document_lengths=[8])


def test_dropout_would_depend_on_the_plan() -> None:
    pair = SequenceGroup((0, 1), 0, cast("ProcessGroup", None), RankTraffic())
    with pytest.raises(ValueError, match="dropout would depend on the sequence plan; set attention_dropout to 0"):
        packed_attention(MODULE, *random_qkv(4, 2, 2), None, document_lengths=[8], sequence_group=pair, dropout=0.1)


def test_a_share_of_another_size_is_refused() -> None:
    pair = SequenceGroup((0, 1), 0, cast("ProcessGroup", None), RankTraffic())
    with pytest.raises(ValueError, match="sums to 8, rank 0 of 2 holds 4 of them, and got 1 x 8"):
        packed_attention(MODULE, *random_qkv(8, 2, 2), None, document_lengths=[8], sequence_group=pair)
