"""How much of encoding, sending and decoding a model's fragments hides behind the rest, and the memory it takes.

One process, two ends of a socket, a sender that keeps to a rate, real codec calls in three threads:

    one by one   encode all, then send all, then decode all
    fetch        encode all, then send; decode as payloads arrive      others fetch once all has been proposed
    stream       send as fragments are encoded, decode as they arrive

The last payload can't be decoded before it was sent, so `stream` is bound by the slowest stage plus one fragment of the
others. `extra_fragments` is the peak of resident memory during the way of working over that before it, the received
sums aside, in fragments (fp32). Medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import statistics
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from compression.registry import codec_for, prepare

if TYPE_CHECKING:
    from compression.codec import Codec, Layout

Way = Literal["one by one", "fetch", "stream"]
_LENGTH = struct.Struct("<I")


def shapes_of(width: int) -> dict[str, tuple[int, ...]]:
    """The matrices of a Llama layer."""
    inner = width * 21 // 8
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    return shapes | {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}


def send(outbox: queue.Queue[bytes | None], end: socket.socket, bits_per_second: float) -> None:
    """Sends payloads until None comes, each as soon as the rate allows."""
    free_s = time.monotonic()
    while (payload := outbox.get()) is not None:
        free_s = max(free_s, time.monotonic()) + 8 * len(payload) / bits_per_second
        time.sleep(max(0.0, free_s - time.monotonic()))  # it has arrived when its last bit has
        end.sendall(_LENGTH.pack(len(payload)) + payload)


def receive(end: socket.socket, count: int, codec: Codec, layout: Layout, sums: torch.Tensor, *, late: bool) -> None:
    """Decodes `count` payloads and adds them up, as they arrive or, if `late`, when all are there."""
    file = end.makefile("rb")
    payloads = (file.read(_LENGTH.unpack(file.read(_LENGTH.size))[0]) for _ in range(count))
    for payload in list(payloads) if late else payloads:
        codec.decode(payload, layout).add_to(sums)


def exchange(way: Way, fragments: list[torch.Tensor], codec: Codec, layout: Layout, bits_per_second: float) -> float:
    """Seconds from the first encoding to the last addition."""
    here, there = socket.socketpair()
    outbox: queue.Queue[bytes | None] = queue.Queue()
    sums = torch.zeros(layout.num_values)
    threads = [
        threading.Thread(target=send, args=(outbox, here, bits_per_second)),
        threading.Thread(
            target=receive, args=(there, len(fragments), codec, layout, sums), kwargs={"late": way == "one by one"}
        ),
    ]
    started_s = time.monotonic()
    payloads = (codec.encode(flat, layout) for flat in fragments)
    for thread in threads:
        thread.start()
    for payload in payloads if way == "stream" else list(payloads):
        outbox.put(payload)
    outbox.put(None)
    for thread in threads:
        thread.join()
    here.close()
    there.close()
    return time.monotonic() - started_s


def _resident_bytes(field: Literal["VmRSS", "VmHWM"]) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak_bytes(way: Way, fragments: list[torch.Tensor], codec: Codec, layout: Layout, bits_per_second: float) -> int:
    """What one exchange adds to the resident memory at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = _resident_bytes("VmRSS")
    exchange(way, fragments, codec, layout, bits_per_second)
    return _resident_bytes("VmHWM") - before - 4 * layout.num_values


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--fragments", type=int, default=6)
    parser.add_argument("--bits-per-second", type=float, action="append", help="may be repeated (default 2e7)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    codec = codec_for("sparseloco")
    prepare(codec)
    layout = codec.layout(shapes_of(arguments.width))
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.randn(shape, generator=generator) for n, shape in layout.shapes.items()}
    fragments = [layout.pack(drawn) for _ in range(arguments.fragments)]
    del drawn
    for rate in arguments.bits_per_second or [2e7]:
        taken: dict[Way, list[float]] = {way: [] for way in get_args(Way)}
        for _ in range(arguments.repeats + 1):
            for way, seconds in taken.items():
                seconds.append(exchange(way, fragments, codec, layout, rate))
        for way, seconds in taken.items():
            figures = {
                "way": way,
                "bits_per_second": rate,
                "fragments": len(fragments),
                "params": len(fragments) * layout.num_values,
                "seconds": statistics.median(seconds[1:]),
                "of_one_by_one": statistics.median(seconds[1:]) / statistics.median(taken["one by one"][1:]),
                "extra_fragments": peak_bytes(way, fragments, codec, layout, rate) / (4 * layout.num_values),
            }
            print(json.dumps(figures) if arguments.json else ", ".join(f"{k} {v}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
