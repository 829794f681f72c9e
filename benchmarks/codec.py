"""What each codec costs, in bits, error and time, on captured pseudo-gradients and on synthetic tensors.

    bits_per_value        all bytes of all payloads (headers, levels, checksums too) / values sent
    index_bits            of those, what the places take; value_bits: all the rest
    uniform_bound_bits_per_index   log2 binomial(real values, kept) / kept: places without any model
    bits_per_parameter    all bytes / parameters, sent or not
    relative_squared_error   of the values sent: |sent - wanted|^2 / |wanted|^2
    *_params_per_s        medians of runs that take turns with torch.topk on the same values, in this process
    predicted_ratio       what num_bytes says / what it was

Places and the rest share one range coder in the `entropy` codec, so index_bits is measured with every level and code
set to zero: the model of the places does not look at them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import capture
from compression.dense import DenseCodec
from compression.entropy import uniform_bound_bits
from compression.quota import Quota
from compression.registry import codec_for
from compression.sparse import SparseCodec
from compression.streams import Symbols
from compression.topk import select

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from compression.codec import Codec, Layout


@dataclass(frozen=True)
class Case:
    """Fragments to encode: a name, and buffers as tensors."""

    name: str
    fragments: list[dict[str, Tensor]]


@dataclass(frozen=True)
class Figures:
    """A row of the result."""

    case: str
    codec: str
    params: int
    density: float
    bits_per_value: float
    index_bits: float | None
    value_bits: float | None
    uniform_bound_bits_per_index: float | None
    bits_per_parameter: float
    encode_params_per_s: float
    decode_params_per_s: float
    topk_params_per_s: float
    relative_squared_error: float
    predicted_ratio: float


def codecs(ks: Sequence[int]) -> Iterator[tuple[str, Codec]]:
    """What is compared."""
    for k in ks:
        for value_bits in (2, 1):
            yield f"sparseloco k={k} {value_bits} bit entropy", codec_for("sparseloco", k=k, value_bits=value_bits)
        yield f"sparseloco k={k} 2 bit rice", codec_for("sparseloco", k=k, coder="rice")
        yield f"sparseloco k={k} 2 bit fixed", codec_for("sparseloco", k=k, coder="fixed")
        yield f"sparseloco k={k} statistical rice", codec_for("sparseloco", k=k, quantizer="statistical")
        yield f"sparseloco-reference-wire k={k}", codec_for("sparseloco-reference-wire", k=k)
    for values in ("fp32", "bf16", "int8"):
        yield f"dense-{values}", DenseCodec(values)


def measure(case: Case, name: str, codec: Codec, repeats: int) -> Figures:
    """One codec on one case; the times are those of the case's largest fragment."""
    total = _Sums()
    for tensors in case.fragments:
        layout = codec.layout({key: tuple(t.shape) for key, t in tensors.items()})
        total.add(codec, layout, layout.pack(tensors), sum(t.numel() for t in tensors.values()))
    largest = max(case.fragments, key=lambda tensors: sum(t.numel() for t in tensors.values()))
    encode_s, decode_s, topk_s = _times(codec, largest, repeats)
    params = sum(t.numel() for t in largest.values())
    sparse = isinstance(codec, SparseCodec)
    return Figures(
        case=case.name,
        codec=name,
        params=total.params,
        density=total.values / total.params,
        bits_per_value=total.bits / total.values,
        index_bits=total.index_bits / total.values if sparse else None,
        value_bits=(total.bits - total.index_bits) / total.values if sparse else None,
        uniform_bound_bits_per_index=total.bound_bits / total.values if sparse else None,
        bits_per_parameter=total.bits / total.params,
        encode_params_per_s=params / encode_s,
        decode_params_per_s=params / decode_s,
        topk_params_per_s=params / topk_s,
        relative_squared_error=total.lost / total.energy if total.energy else 0.0,
        predicted_ratio=total.predicted_bits / total.bits,
    )


@dataclass
class _Sums:
    """Over all fragments of a case."""

    params: int = 0
    values: int = 0
    bits: int = 0
    index_bits: int = 0
    bound_bits: float = 0.0
    predicted_bits: int = 0
    lost: float = 0.0
    energy: float = 0.0

    def add(self, codec: Codec, layout: Layout, flat: Tensor, params: int) -> None:
        """Encodes a fragment, and checks that it comes back as its own symbols say."""
        payload = codec.encode(flat, layout)
        update = codec.decode(payload, layout)
        wanted = flat if update.positions is None else flat[update.positions]
        self.params += params
        self.values += params if update.positions is None else len(update.values)
        self.bits += 8 * len(payload)
        self.predicted_bits += 8 * codec.num_bytes(layout)
        self.lost += float((update.values.double() - wanted.double()).square().sum())
        self.energy += float(wanted.double().square().sum())
        if isinstance(codec, SparseCodec):
            self._add_places(codec, layout, flat, update.positions)

    def _add_places(self, codec: SparseCodec, layout: Layout, flat: Tensor, positions: Tensor | None) -> None:
        quota = codec.quota(layout)
        places, values = select(flat, quota)
        codes, levels = codec.quantizer.quantize(values, quota)
        symbols = Symbols(places, levels, codes)
        again = codec.coder.decode(
            [memoryview(s) for s in codec.coder.encode(symbols, quota, codec.quantizer)], quota, codec.quantizer
        )
        for name in ("places", "levels", "codes"):
            if not np.array_equal(getattr(again, name), getattr(symbols, name)):
                raise AssertionError(f"{name} did not come back")
        offsets = quota.spread(np.arange(0, quota.layout.num_values, quota.layout.chunk))
        if positions is None or not np.array_equal(positions.numpy(), places + offsets):
            raise AssertionError("positions are not those that were selected")
        self.index_bits += 8 * _place_bytes(codec, symbols, quota)
        self.bound_bits += uniform_bound_bits(quota)


def _place_bytes(codec: SparseCodec, symbols: Symbols, quota: Quota) -> int:
    """Bytes that the places take by themselves."""
    streams = dict(zip(codec.coder.streams, codec.coder.encode(symbols, quota, codec.quantizer), strict=True))
    if "lanes" in streams:
        alone = Symbols(symbols.places, np.zeros_like(symbols.levels), np.zeros_like(symbols.codes))
        return sum(len(stream) for stream in codec.coder.encode(alone, quota, codec.quantizer))
    return sum(len(stream) for name, stream in streams.items() if name in ("places", "quotients", "rests"))


def _times(codec: Codec, tensors: dict[str, Tensor], repeats: int) -> tuple[float, float, float]:
    """Median seconds to encode, to decode and add to a sum of contributors, and of torch.topk alone, by turns."""
    layout = codec.layout({key: tuple(t.shape) for key, t in tensors.items()})
    flat = layout.pack(tensors)
    payload = codec.encode(flat, layout)
    k = codec.k if isinstance(codec, SparseCodec) else 64
    chunks = flat[: len(flat) // 4096 * 4096].view(-1, 4096)
    sums, counts = torch.zeros_like(flat), torch.zeros(len(flat), dtype=torch.int16)

    def receive() -> None:
        update = codec.decode(payload, layout)
        update.add_to(sums)
        update.count_into(counts)

    def topk() -> None:
        if len(chunks):
            chunks.abs().topk(k, dim=1)

    tasks: list[Callable[[], object]] = [lambda: codec.encode(flat, layout), receive, topk]
    seconds: list[list[float]] = [[], [], []]
    for _ in range(repeats + 1):
        for task, taken in zip(tasks, seconds, strict=True):
            started = time.perf_counter()
            task()
            taken.append(time.perf_counter() - started)
    encode_s, decode_s, topk_s = (statistics.median(taken[1:]) for taken in seconds)
    return encode_s, decode_s, topk_s


def synthetic(seed: int, width: int) -> Iterator[Case]:
    """The matrices of a Llama layer, filled with independent values: no model can beat the uniform bound on them."""
    rng = np.random.default_rng(seed)
    inner = width * 21 // 8
    shapes = dict.fromkeys(("q", "k", "v", "o"), (width, width)) | {"gate": (inner, width), "up": (inner, width)}
    shapes["down"] = (width, inner)
    draws: dict[str, Callable[[tuple[int, int]], NDArray[np.float64]]] = {
        "normal": rng.standard_normal,
        "laplace": lambda shape: rng.laplace(size=shape),
        "student-t 3": lambda shape: rng.standard_t(3, shape),
    }
    for name, draw in draws.items():
        yield Case(
            f"{name}, width {width}", [{n: torch.from_numpy(draw(s).astype(np.float32)) for n, s in shapes.items()}]
        )


def captured(folder: Path) -> Case:
    """All fragments of all rounds and replicas of a capture."""
    rounds = capture.read(folder)
    if not rounds:
        raise SystemExit(f"{folder}: no captured rounds; make some with python -m benchmarks.capture {folder}")
    numbers = sorted({r.round for r in rounds})
    name = f"captured {folder.name}, rounds {numbers[0]} to {numbers[-1]}"
    return Case(name, [tensors for r in rounds for tensors in r.fragments.values()])


def _capture_if_missing(folder: Path) -> Path:
    if not capture.read(folder):
        arguments = capture.arguments_parser().parse_args([str(folder)])
        kept = range(arguments.first_kept, arguments.rounds + 1)
        for line in capture.capture(folder, capture.settings(arguments), kept):
            print(line, file=sys.stderr, flush=True)
    return folder


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--captured", type=Path, action="append", help="a folder of benchmarks.capture; may be repeated"
    )
    parser.add_argument("--k", type=int, action="append", help="values kept of 4096; may be repeated (default 64)")
    parser.add_argument("--only", default="", help="codecs whose name holds this")
    parser.add_argument("--synthetic-width", type=int, default=1024, help="0 leaves synthetic tensors out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folders = arguments.captured or [_capture_if_missing(Path("runs/capture-256"))]
    cases = [captured(folder) for folder in folders]
    if arguments.synthetic_width:
        cases.extend(synthetic(arguments.seed, arguments.synthetic_width))
    if not arguments.json:
        print(f"seed {arguments.seed}, {torch.get_num_threads()} threads, median of {arguments.repeats}")
    for case in cases:
        for name, codec in codecs(arguments.k or [64]):
            if arguments.only in name:
                figures = measure(case, name, codec, arguments.repeats)
                print(json.dumps(asdict(figures)) if arguments.json else _line(figures), flush=True)


def _line(figures: Figures) -> str:
    index = "" if figures.index_bits is None else f" (index {figures.index_bits:.2f})"
    return (
        f"{figures.case:38} {figures.codec:36} {figures.bits_per_value:7.3f} bits a value{index}, "
        f"{figures.bits_per_parameter:.4f} a parameter, error {figures.relative_squared_error:.5f}, "
        f"million parameters/s: encode {figures.encode_params_per_s / 1e6:.0f}, "
        f"decode {figures.decode_params_per_s / 1e6:.0f}, topk {figures.topk_params_per_s / 1e6:.0f}"
    )


if __name__ == "__main__":
    main()
