"""The k largest of every chunk.

    S_c = the k places of chunk c with the largest |a|, among equals the lowest places        (1)

On the CPU that is `largest`. On any other device it is torch.topk, which leaves open which of several equal values it
takes; so k + 1 values are asked for:

    |a|_(k) > |a|_(k+1)   the set is unique, whatever topk did                                (2)
    |a|_(k) = |a|_(k+1)   those above |a|_(k) stay; the equal ones are chosen again, by the key C - place   (3)

Magnitudes are compared as the integers that their bits are: the same order, faster, and with inf and NaN above all
numbers, so that looking at the chosen ones is enough to find them. Padding is zero, so it can be chosen only in (3),
where its key is 0.

Paper: Sarfi et al., arXiv 2508.15706 (TopK_chunk).
Differs: ties are decided, so that equal tensors give equal bytes on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from compression.largest import largest
from compression.layout import check_flat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from compression.layout import ChunkLayout
    from compression.quota import Quota

SLAB_VALUES = 1 << 24
"""Values worked on at once: enough to keep a device busy, and less than a large fragment."""


def select(flat: Tensor, quota: Quota) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """The places inside their chunks and the values of what is kept, both (quota.total,), in the quota's order.

    `flat` is the layout's buffer, on any device; the results are in main memory. ValueError if a kept value is not
    finite, or a padding is not zero.
    """
    layout = quota.layout
    check_flat(flat, layout.num_values)
    if flat.device.type == "cpu":
        places, values = largest(flat.detach().numpy(), quota)
        _check_finite(places, values, quota)
        return places, values
    return _select_there(flat.detach(), quota)


def _select_there(flat: Tensor, quota: Quota) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """`select` by torch on the tensor's device: only what is kept is copied to main memory."""
    layout = quota.layout
    chunks = flat.view(layout.num_chunks, layout.chunk)
    if quota.k == layout.chunk:
        places, values = _everything(chunks, quota)
    else:
        slab = max(1, SLAB_VALUES // layout.chunk)
        workspace = torch.empty_like(chunks[:slab])  # one for all slabs: touching fresh memory costs more than top-k
        parts = [_largest(chunks[i : i + slab], i, quota, workspace) for i in range(0, layout.num_chunks, slab)]
        places = quota.flat(torch.cat([part[0] for part in parts]).to(torch.int32).cpu().numpy())
        values = quota.flat(torch.cat([part[1] for part in parts]).cpu().numpy())
    _check(places, values, quota)
    return places.astype(np.uint16), values


def _largest(chunks: Tensor, first_chunk: int, quota: Quota, workspace: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) int64 ascending places and (n, k) values of n chunks; short rows end with places of C."""
    k, chunk = quota.k, chunks.shape[1]
    magnitudes = torch.abs(chunks, out=workspace[: len(chunks)]).view(torch.int32)
    top = magnitudes.topk(k + 1, dim=1)  # (1)
    places = top.indices[:, :k]
    tied = (top.values[:, k - 1] == top.values[:, k]).nonzero()[:, 0]  # (2)
    at_once = max(1, SLAB_VALUES // chunk)
    for some in (tied[i : i + at_once] for i in range(0, len(tied), at_once)):
        padding = _padding(some.cpu().numpy() + first_chunk, quota.layout)
        places[some] = _untied(magnitudes[some], top.values[some, :k], places[some], padding)
    places = places.sort(dim=1).values
    return places, chunks.gather(1, places.clamp(max=chunk - 1) if quota.ragged else places)


def _untied(magnitudes: Tensor, largest: Tensor, places: Tensor, padding: NDArray[np.bool_] | None) -> Tensor:
    """(n, k): `places` of the `largest`, those equal to the last of them replaced by the lowest such places; C if none.

    `magnitudes` and `padding` are (n, C), the others (n, k), descending.
    """
    k, chunk = places.shape[1], magnitudes.shape[1]
    least = largest[:, -1:]
    keys = (magnitudes == least) * torch.arange(chunk, 0, -1, dtype=torch.int32, device=places.device)  # (3)
    if padding is not None:
        keys.masked_fill_(torch.from_numpy(padding).to(keys.device), 0)
    equal = keys.topk(k, dim=1)
    above = largest > least
    rank = (torch.arange(k, device=places.device) - above.sum(dim=1, keepdim=True)).clamp_(min=0)
    lowest = equal.indices.masked_fill_(equal.values == 0, chunk).gather(1, rank)
    return torch.where(above, places, lowest)


def _padding(chunks: NDArray[np.int64], layout: ChunkLayout) -> NDArray[np.bool_] | None:
    """(n, C): which places of these chunks are padding; None if none is."""
    cut = np.flatnonzero(layout.num_real[chunks] < layout.chunk)
    if not len(cut):
        return None
    padding = np.zeros((len(chunks), layout.chunk), np.bool_)
    padding[cut] = ~layout.is_real(chunks[cut, None], np.arange(layout.chunk)[None])
    return padding


def _everything(chunks: Tensor, quota: Quota) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All real places and values: k = C, nothing to choose."""
    layout = quota.layout
    values = chunks.cpu().numpy()
    places = np.broadcast_to(np.arange(layout.chunk), values.shape)
    if not len(layout.partial):
        return places.reshape(-1), values.reshape(-1)
    real = np.ones(values.shape, np.bool_)
    real[layout.partial] = layout.is_real(layout.partial[:, None], places[:1])
    if values[~real].any():
        raise ValueError("flat is not zero in its padding; it was not made by this layout's pack")
    return places[real], values[real]


def _check_finite(places: NDArray[np.integer], values: NDArray[np.float32], quota: Quota) -> None:
    layout = quota.layout
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        chunk = int(quota.spread(np.arange(layout.num_chunks))[worst])
        span = layout.span_of(chunk)
        place = chunk * layout.chunk + int(places[worst])
        raise ValueError(
            f"Tensor {span.name!r} holds {values[worst]} (place {place} of the flat buffer); only finite values can be "
            f"sent. Has the inner optimizer diverged?"
        )


def _check(places: NDArray[np.integer], values: NDArray[np.float32], quota: Quota) -> None:
    _check_finite(places, values, quota)
    layout = quota.layout
    if len(layout.partial):
        chunks = quota.spread(np.arange(layout.num_chunks))
        cut = quota.spread(layout.num_real) < layout.chunk
        if not layout.is_real(chunks[cut], places[cut]).all():
            raise ValueError("flat is not zero in its padding; it was not made by this layout's pack")
