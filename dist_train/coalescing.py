"""Many tensors moved as few: a collective on each small parameter would wait for the network that often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

# Large enough that a ring is busy, small enough that a copy of it does not count beside a model.
BUCKET_BYTES = 32 << 20


@torch.no_grad()
def coalesced(tensors: Iterable[Tensor], change: Callable[[Tensor], None], device: torch.device | None = None) -> None:
    """Replaces each tensor by what `change` makes of it, in place, given neighbours of one dtype as one flat copy.

    Copies lie on `device`, or where the tensors do, and have BUCKET_BYTES together, or one tensor that is larger.
    """
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        flat = flat if device is None else flat.to(device)
        change(flat)
        for tensor, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket, held_bytes = list[Tensor](), 0
    for tensor in tensors:
        if bucket and (held_bytes + tensor.nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, held_bytes = [], 0
        bucket.append(tensor)
        held_bytes += tensor.nbytes
    if bucket:
        yield bucket
