"""The k largest of every chunk.

    S_c = the k places of chunk c with the largest |a|, among equals the lowest places        (1)

On the CPU that is `largest`. On any other device it is torch.topk, which leaves open which of several equal values it
takes; so k + 1 values are asked for:

    |a|_(k) > |a|_(k+1)   the set is unique, whatever topk did                                (2)
    |a|_(k) = |a|_(k+1)   those above |a|_(k) stay; the equal ones are chosen again, by the key C - place   (3)

Magnitudes are compared as the integers that their bits are: the same order, faster, and with inf and NaN above all
numbers, so that looking at the chosen ones is enough to find them. Padding is zero, which is checked first, so it can
be chosen only in (3), where its key is 0.

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

    `flat` is the layout's buffer, in main memory. ValueError if a kept value is not finite, or a padding is not zero.
    """
    check_flat(flat, quota.layout.num_values)
    places, values = largest(flat.detach().numpy(), quota)
    _check_finite(places, values, quota)
    return places, values


def select_rows(flat: Tensor, quota: Quota) -> tuple[Tensor, Tensor]:
    """The same by torch on the device of `flat`: (num_chunks, k) int64 places, ascending, and their values.

    Where a chunk is short of real values its row ends with places of C, and zeros. ValueError as `select`.
    """
    layout, flat = quota.layout, flat.detach()
    check_flat(flat, layout.num_values)
    chunks = flat.view(layout.num_chunks, layout.chunk)
    at_once = max(1, SLAB_VALUES // layout.chunk)
    _check_padding(chunks, layout, at_once)
    # One workspace for all slabs: touching fresh memory costs more than top-k.
    workspace = torch.empty_like(chunks[:at_once])
    choose = _everything if quota.k == layout.chunk else _largest
    parts = [choose(chunks[i : i + at_once], i, quota, workspace) for i in range(0, layout.num_chunks, at_once)]
    places, values = torch.cat([places for places, _ in parts]), torch.cat([values for _, values in parts])
    if not bool(values.isfinite().all()):
        held = quota.flat(places.cpu().numpy()), quota.flat(values.cpu().numpy())
        _check_finite(*held, quota)
    return places, values


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
    return _gathered(chunks, places, quota)


def _everything(chunks: Tensor, first_chunk: int, quota: Quota, _workspace: Tensor) -> tuple[Tensor, Tensor]:
    """What `_largest` gives with k = C: all real places, nothing to choose."""
    places = torch.arange(quota.k, device=chunks.device).repeat(len(chunks), 1)
    padding = _padding(np.arange(first_chunk, first_chunk + len(chunks)), quota.layout)
    if padding is not None:
        places.masked_fill_(torch.from_numpy(padding).to(places.device), quota.k)
    return _gathered(chunks, places, quota)


def _gathered(chunks: Tensor, places: Tensor, quota: Quota) -> tuple[Tensor, Tensor]:
    """(n, k) places, ascending, and the values there, zero at places of C."""
    places = places.sort(dim=1).values
    if not quota.ragged:
        return places, chunks.gather(1, places)
    values = chunks.gather(1, places.clamp(max=quota.layout.chunk - 1))
    return places, values.masked_fill_(places == quota.layout.chunk, 0)


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


def _check_padding(chunks: Tensor, layout: ChunkLayout, at_once: int) -> None:
    for start in range(0, len(layout.partial), at_once):
        some = layout.partial[start : start + at_once]
        padding = torch.from_numpy(~layout.is_real(some[:, None], np.arange(layout.chunk)[None])).to(chunks.device)
        if bool((chunks[torch.from_numpy(some).to(chunks.device)].ne(0) & padding).any()):
            raise ValueError("flat is not zero in its padding; it was not made by this layout's pack")


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
