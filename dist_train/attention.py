"""Attention for packed documents: causal inside each document, nothing between two.

Registered with transformers under PACKED, so that any Llama-family model runs unmodified. The documents' lengths
travel through the model's keyword arguments:

    model(tokens[None], position_ids=positions[None], use_cache=False, document_lengths=(512, 512, 90))

No mask is ever made: neighbours of equal length form a batch by a view, and each such run is one call of
`scaled_dot_product_attention(is_causal=True)`. Batches put equal lengths side by side for that reason.

Where several ranks share the documents, `sequence_group` says with whom: `tokens` are then this rank's share of the
group's, `document_lengths` those of the whole group, and heads are traded for tokens around the same attention
(`dist_train/sequence/ulysses.py`).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from dist_train.sequence import ulysses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from dist_train.sequence.groups import SequenceGroup

PACKED = "dist_train_packed"
# What some models ask of attention beyond softmax(q k^T) v: ignoring it would train another model than the config says.
UNSUPPORTED = ("a mask", "softcap", "s_aux")


def packed_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: Sequence[int],
    sequence_group: SequenceGroup | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention output (1, n, heads, head_dim) and no weights, as transformers wants them.

    `query` (1, heads, n, head_dim); `key` and `value` (1, kv_heads, n, head_dim) with kv_heads a divisor of heads;
    `document_lengths` sums to n, or to the tokens of the whole `sequence_group`, whose members call this together.
    ValueError when it does not, or when the model wants what is not done here.
    """
    _check_wishes(document_lengths, sliding_window, {"a mask": attention_mask, **others})
    if sequence_group is not None:
        if dropout:
            raise ValueError("Attention dropout would depend on the sequence plan; set attention_dropout to 0")
        return _by_heads(query, key, value, sequence_group, document_lengths=document_lengths, scaling=scaling), None
    if query.shape[0] != 1 or sum(document_lengths) != query.shape[2]:
        raise ValueError(
            f"document_lengths sums to {sum(document_lengths)} for {query.shape[0]} x {query.shape[2]} tokens; "
            f"pack all documents in one row and give each one's length"
        )
    output = _by_document(query, key, value, document_lengths=document_lengths, scaling=scaling, dropout=dropout)
    return output, None


def _by_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: SequenceGroup,
    *,
    document_lengths: Sequence[int],
    scaling: float | None,
) -> Tensor:
    tokens = sum(document_lengths)
    own = len(ulysses.share_of(tokens, group.position, group.degree))
    if query.shape[0] != 1 or query.shape[2] != max(own, 1):
        raise ValueError(
            f"document_lengths sums to {tokens}, rank {group.position} of {group.degree} holds {own} of them, "
            f"and got {query.shape[0]} x {query.shape[2]}; give each rank its run of the packed tokens"
        )
    q, k, v = ulysses.spread(query[:, :, :own], key[:, :, :own], value[:, :, :own], tokens, group)
    output = _by_document(q, k, v, document_lengths=document_lengths, scaling=scaling)
    collected = ulysses.collect(output, query.shape[1], group)
    if own:
        return collected
    # A rank without a token runs the model on one that counts for nothing: it attends to nobody, and nobody to it.
    return torch.cat([collected, query.transpose(1, 2)], dim=1)


def _by_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    document_lengths: Sequence[int],
    scaling: float | None,
    dropout: float = 0.0,
) -> Tensor:
    outputs, start = list[Tensor](), 0
    for length, equal in groupby(document_lengths):
        count = len(list(equal))
        stop = start + count * length
        # (1, heads, count * length, head_dim) -> (count, heads, length, head_dim)
        q, k, v = (
            x[0, :, start:stop].reshape(x.shape[1], count, length, -1).transpose(0, 1) for x in (query, key, value)
        )
        output = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # (count * length, heads, head_dim)
        start = stop
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]


def _check_wishes(document_lengths: Sequence[int], sliding_window: int | None, others: dict[str, object]) -> None:
    if sliding_window is not None and max(document_lengths) > sliding_window:
        raise ValueError(
            f"A document of {max(document_lengths)} tokens exceeds the model's sliding window of {sliding_window}, "
            f"which packed attention does not cut; set data.sequence_tokens to {sliding_window} or less"
        )
    for name in UNSUPPORTED:
        if others.get(name) is not None:
            raise ValueError(f"The model asks for attention with {name}, which packed attention does not have")


def _no_mask(**facts: object) -> None:
    del facts


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
