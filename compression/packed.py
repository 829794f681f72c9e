"""From a fragment to the packed stream of its symbols on the fragment's own device; only that stream is copied.

    places, values   (num_chunks, k) of the k largest                 topk.select_rows                    (1)
    codes, levels    of those, as `quantizer` has them                `_QUANTIZE`                         (2)
    stream           places, levels, codes, each at its own width     what `streams.FixedWidth` writes    (3)
    main memory      one copy of the stream, unpacked there for whatever coder follows                    (4)

With k = 64 of 4096 and two bits (4) is 14.4 bits for each kept value, 0.9 % of the fragment's bytes. The entropy coder
learns symbol after symbol and stays on the processor. What has no (2) here crosses in 32 bits and is quantized there.

The bytes are those of the CPU's path, bit for bit. So a sum over the values of a chunk is a loop over its k columns,
one addition for all chunks at a time: a device's own scan adds in an order of its own. And nothing is compiled or
fused: a compiler may contract a product and a sum into one rounding. Both are paid on 1/64 of the values, beside a
top-k on all of them.

In main memory the same is done by compiled loops (`topk.select`, `Quantizer.quantize`), which are faster there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from compression import bits, level
from compression.quantizer import PRICE, QUANTIZERS, binary_entropy
from compression.streams import FixedWidth, Symbols
from compression.topk import select, select_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from compression.quantizer import Quantizer
    from compression.quota import Quota

_FIXED = FixedWidth()
_EXACT = QUANTIZERS["sign-magnitude", 32]


def symbols_of(flat: Tensor, quota: Quota, quantizer: Quantizer) -> Symbols:
    """What a payload of `flat`, the layout's buffer on any device, says; in main memory. ValueError as `select`."""
    if flat.device.type == "cpu":
        places, values = select(flat, quota)
        codes, levels = quantizer.quantize(values, quota)
        return Symbols(places, levels, codes)
    return unpacked(packed(flat, quota, quantizer), quota, quantizer)


def packed(flat: Tensor, quota: Quota, quantizer: Quantizer) -> Tensor:
    """The stream (3), (n,) uint8 on the device of `flat`: places, levels and codes, each filled up to whole bytes."""
    places, values = select_rows(flat, quota)  # (1)
    counts = torch.from_numpy(quota.counts).to(flat.device)[:, None]
    if quantizer.quantizer_id in _QUANTIZE:
        codes, levels = _QUANTIZE[quantizer.quantizer_id](values, counts)  # (2)
    else:
        quantizer, codes, levels = _EXACT, values.view(torch.int32), places.new_empty(0)
    if quota.ragged:
        held = places < quota.layout.chunk
        places, codes = places[held], codes[held]
    parts = [places.reshape(-1), levels.reshape(-1), codes.reshape(-1)]
    widths = _FIXED.widths(quota, quantizer)
    return torch.cat([_pack(part, width) for part, (width, _) in zip(parts, widths, strict=True)])  # (3)


def unpacked(stream: Tensor, quota: Quota, quantizer: Quantizer) -> Symbols:
    """The symbols of what `packed` made, quantized here where that could not be done there."""
    there = quantizer if quantizer.quantizer_id in _QUANTIZE else _EXACT
    whole = memoryview(stream.cpu().numpy().tobytes())  # (4)
    ends = np.cumsum([bits.num_bytes(width, count) for width, count in _FIXED.widths(quota, there)]).tolist()
    pieces = [whole[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    symbols = _FIXED.decode(pieces, quota, there)
    if there is quantizer:
        return symbols
    codes, levels = quantizer.quantize(symbols.codes.astype(np.uint32).view(np.float32), quota)
    return Symbols(symbols.places, levels, codes)


def _sign(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) codes and (n, 1) levels of `quantizer.Sign`; `values` are zero from counts (n, 1) on."""
    sums = _running_sums(values.abs().double())[:, -1:]
    return (values < 0).int(), _level_codes(sums / counts.double())


def _sign_magnitude(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) codes and (n, 2) levels of `quantizer.SignMagnitude`, its equations operation by operation."""
    k, magnitudes = values.shape[1], values.abs()
    ascending = magnitudes.sort(dim=1).values
    exact = ascending.double()
    low_sums = torch.zeros_like(exact)
    low_sums[:, 1:] = _running_sums(exact[:, :-1])
    high_sums = _running_sums(exact.flip(1)).flip(1)
    num_high = torch.arange(k, 0, -1, device=values.device)
    num_low = counts - num_high
    gain = high_sums * high_sums / num_high.double()
    gain += low_sums * low_sums / num_low.clamp(min=1).double()
    energy = PRICE * _running_sums(exact * exact)[:, -1:]
    gain -= energy * _entropies(counts, k)
    gain.masked_fill_(num_low < 0, -1.0)
    best = gain.argmax(dim=1, keepdim=True)  # of equals the first, as numpy has it
    high = high_sums.gather(1, best) / num_high[best].double()
    low_count = num_low.gather(1, best)
    low = torch.where(low_count > 0, low_sums.gather(1, best) / low_count.clamp(min=1).double(), high)
    codes = (values < 0).int() | (magnitudes >= ascending.gather(1, best)).int() << 1
    return codes, _level_codes(torch.cat([low, high], dim=1))


_QUANTIZE: dict[int, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    QUANTIZERS["sign-magnitude", 1].quantizer_id: _sign,
    QUANTIZERS["sign-magnitude", 2].quantizer_id: _sign_magnitude,
}


def _running_sums(rows: Tensor) -> Tensor:
    """(n, k): the sum of the first column, of the first two, and so on, added from left to right."""
    sums = rows.t().clone(memory_format=torch.contiguous_format)
    for i in range(1, len(sums)):
        sums[i] += sums[i - 1]
    return sums.t()


def _entropies(counts: Tensor, k: int) -> Tensor:
    """(n, k): the entropy of a split of counts (n, 1) values with k, k - 1, ... 1 of them high."""
    numbers, which = torch.unique(counts[:, 0], return_inverse=True)
    table = binary_entropy(k)[numbers.cpu().numpy() - 1, ::-1]
    return torch.from_numpy(table.copy()).to(counts.device)[which]


def _level_codes(levels: Tensor) -> Tensor:
    """`level.encode` of fp64 levels, in int32."""
    raw = levels.float().view(torch.int32)
    return (raw + (1 << (level.SHIFT - 1)) >> level.SHIFT).clamp(max=level.LARGEST)


def _pack(values: Tensor, width: int) -> Tensor:
    """`bits.pack` of integers (n,): uint8, on their device."""
    if width == 32:
        return values.view(torch.uint8)
    at, order = (torch.arange(n, dtype=torch.int32, device=values.device) for n in (width, 8))
    parts = []
    for some in torch.split(values.int(), bits.SLAB_VALUES):
        ones = (some[:, None] >> at & 1).view(-1)
        ones = torch.nn.functional.pad(ones, (0, -len(ones) % 8)).view(-1, 8)
        parts.append((ones << order).sum(dim=1).to(torch.uint8))
    return torch.cat(parts) if parts else values.new_empty(0, dtype=torch.uint8)
