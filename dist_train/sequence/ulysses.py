"""Sequence parallelism by heads: each rank trades its part of all heads for all tokens of some heads.

A group of d ranks holds n packed tokens, the j-th rank a run of them (`share_of`), and the model has H query heads and
K key-value heads, each of the latter for g = H / K of the former. `spread` before attention, `collect` after it:

    tokens of rank j:        from  n j // d        to  n (j + 1) // d                                       (1)
    query heads of rank j:   from  H j // d        to  H (j + 1) // d                                       (2)
    its key-value heads:     those of its query heads, h -> h // g                                          (3)
    spread:    (n_j, H + 2 K, dim)  ->  (n, H_j + 2 K_j, dim)        one all-to-all of q, k and v           (4)
    collect:   (n, H_j, dim)        ->  (n_j, H, dim)                one all-to-all                         (5)

Neither n nor H need be divisible by d: shares differ by one. Where K < d, a key-value head goes to several ranks, and
its gradients from them are summed by (4) backwards. Nothing is padded; a rank that has no token (n < d) takes part
with empty messages.

Paper:   Jacobs et al., DeepSpeed Ulysses (2023), arXiv 2309.14509.
Differs: shares of unequal size, key-value heads replicated only where they are needed, q, k and v in one exchange.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig

    from dist_train.sequence.groups import SequenceGroup
    from dist_train.sequence.plan import SequencePlan


def share_of(total: int, position: int, degree: int) -> range:
    """What the member at `position` of `degree` holds of `total` things in a row: runs that differ by one at most."""
    return range(total * position // degree, total * (position + 1) // degree)  # (1), (2)


@dataclass(frozen=True)
class HeadShare:
    """The heads of one member of a group."""

    query: range
    key_value: range
    partner: tuple[int, ...]
    """For each query head, its key-value head, counted from the first of `key_value`."""

    @property
    def is_grouped(self) -> bool:
        """Whether each key-value head serves equally many query heads, as scaled_dot_product_attention wants it."""
        size = len(self.query) // len(self.key_value)
        return self.partner == tuple(i // size for i in range(len(self.key_value) * size))

    @property
    def columns(self) -> int:
        """Heads that arrive here of each token: queries, keys and values."""
        return len(self.query) + 2 * len(self.key_value)


@lru_cache(maxsize=64)
def head_shares(heads: int, kv_heads: int, degree: int) -> tuple[HeadShare, ...]:
    """The heads of each member; ValueError when some would have none."""
    if degree > heads:
        raise ValueError(
            f"A group of {degree} ranks cannot share {heads} query heads: each needs one; "
            f"plan with degrees up to {heads}, or train a model with more heads"
        )
    shares, served = [], heads // kv_heads
    for position in range(degree):
        query = share_of(heads, position, degree)
        key_value = range(query.start // served, (query.stop - 1) // served + 1)  # (3)
        partner = tuple(head // served - key_value.start for head in query)
        shares.append(HeadShare(query, key_value, partner))
    return tuple(shares)


def spread(
    query: Tensor, key: Tensor, value: Tensor, tokens: int, group: SequenceGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's heads of all `tokens` of the group: query (1, H_j, n, dim), key and value (1, K_j or H_j, n, dim).

    Arguments: `query` (1, H, n_j, dim), `key` and `value` (1, K, n_j, dim), this rank's tokens of all heads. Each
    key-value head is repeated for its query heads only where they are not equally many.
    """
    shares = head_shares(query.shape[1], key.shape[1], group.degree)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (n_j, heads, dim)
    messages = []
    for share in shares:
        kv = slice(share.key_value.start, share.key_value.stop)
        parts = (q[:, share.query.start : share.query.stop], k[:, kv], v[:, kv])
        messages.append(torch.cat(parts, dim=1).flatten())
    own, dim = shares[group.position], query.shape[-1]
    counts = [len(share_of(tokens, position, group.degree)) for position in range(group.degree)]
    received = _exchanged(torch.cat(messages), _sizes(messages), [n * own.columns * dim for n in counts], group)  # (4)
    mine = torch.split(
        received.view(1, tokens, own.columns, dim),
        [len(own.query), len(own.key_value), len(own.key_value)],
        dim=2,
    )
    q, k, v = (part.transpose(1, 2) for part in mine)
    if not own.is_grouped:
        partner = torch.tensor(own.partner, device=q.device)
        k, v = k[:, partner], v[:, partner]
    return q, k, v


def collect(output: Tensor, heads: int, group: SequenceGroup) -> Tensor:
    """All `heads` of this rank's tokens, (1, n_j, H, dim), from its heads of all tokens, `output` (1, n, H_j, dim)."""
    tokens, dim = output.shape[1], output.shape[3]
    degree, own = group.degree, len(share_of(tokens, group.position, group.degree))
    row = output.shape[2] * dim
    sends = [len(share_of(tokens, position, degree)) * row for position in range(degree)]
    columns = [len(share_of(heads, position, degree)) for position in range(degree)]
    receives = [own * column * dim for column in columns]
    received = _exchanged(output.flatten(), sends, receives, group)  # (5)
    blocks = [
        block.view(own, column, dim) for block, column in zip(torch.split(received, receives), columns, strict=True)
    ]
    return torch.cat(blocks, dim=1)[None]


def all_to_all_bytes(
    tokens: int, degree: int, *, heads: int, kv_heads: int, head_dim: int, layers: int, value_bytes: int
) -> int:
    """Bytes that a group of `degree` sends in all for `tokens`, forward and backward through `layers`."""
    columns = 0
    for share, position in zip(head_shares(heads, kv_heads, degree), range(degree), strict=True):
        others = tokens - len(share_of(tokens, position, degree))
        columns += others * (share.columns + len(share.query))  # what it gets by (4) and gives by (5)
    return 2 * layers * columns * head_dim * value_bytes


def step_all_to_all_bytes(
    plan: SequencePlan, lengths: Sequence[int], architecture: PretrainedConfig, *, value_bytes: int
) -> int:
    """Bytes that all ranks together send in all-to-alls in a step by `plan`; `architecture` is the model's `config`.

    `value_bytes` are those of a number of q, k and v: 4 where parameters are fp32, 2 under bf16 autocast.
    """
    heads = architecture.num_attention_heads
    return sum(
        all_to_all_bytes(
            sum(lengths[sequence] for sequence in group.sequences),
            len(group.ranks),
            heads=heads,
            kv_heads=architecture.num_key_value_heads,
            head_dim=getattr(architecture, "head_dim", None) or architecture.hidden_size // heads,
            layers=architecture.num_hidden_layers,
            value_bytes=value_bytes,
        )
        for micro_batch in plan.micro_batches
        for group in micro_batch.groups
    )


def _sizes(messages: Sequence[Tensor]) -> list[int]:
    return [message.numel() for message in messages]


def _exchanged(sent: Tensor, send_sizes: list[int], receive_sizes: list[int], group: SequenceGroup) -> Tensor:
    return _Exchange.apply(sent, send_sizes, receive_sizes, group)  # type: ignore[no-untyped-call,no-any-return]


class _Exchange(torch.autograd.Function):
    """all_to_all_single on flat tensors; its gradient is the exchange in the other direction.

    Torch's own differentiable one is private, and does not tell us of its backward bytes.
    """

    @staticmethod
    def forward(
        ctx: Any, sent: Tensor, send_sizes: list[int], receive_sizes: list[int], group: SequenceGroup
    ) -> Tensor:
        ctx.backward_arguments = (receive_sizes, send_sizes, group)
        return _all_to_all(sent, send_sizes, receive_sizes, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradient.contiguous(), *ctx.backward_arguments), None, None, None


def _all_to_all(sent: Tensor, send_sizes: list[int], receive_sizes: list[int], group: SequenceGroup) -> Tensor:
    received = sent.new_empty(sum(receive_sizes))
    started_s = time.monotonic()
    dist.all_to_all_single(received, sent, receive_sizes, send_sizes, group=group.process_group)
    seconds = 0.0 if sent.is_cuda else time.monotonic() - started_s
    for peer, send_size, receive_size in zip(group.ranks, send_sizes, receive_sizes, strict=True):
        if peer != group.ranks[group.position]:
            group.traffic.record(
                "sequence_all_to_all",
                peer,
                sent_bytes=send_size * sent.element_size(),
                received_bytes=receive_size * sent.element_size(),
                seconds=seconds / (group.degree - 1),
            )
    return received
