"""How long a round takes a replica, phase by phase: the same phases that the metrics and the report have.

Symbols: H inner steps of step_s seconds, R replicas, P parameters, p bytes of all payloads of one replica on a line
(frames, packets, requests), E and D parameters a second that the codec encodes, and decodes and adds up.

    compute   H step_s                                                                                     (1)
    encode    P / E                                                                                        (2)
    publish   relay: p / up + latency;  direct: nothing, who wants it comes for it                         (3)
    fetch     direct: (R - 1) p / min(down, up of the slowest),  relay: max((R - 1) p / down,
              R (R - 1) p / the relay's up);  and two ways there and back                                  (4)
    decode    R P / D                                                                                      (5)
    apply     P / A                                                                                        (6)
    round     the slowest replica's sum; the others wait                                                   (7)

`decode` stands inside `fetch` in a report: a payload is checked by decoding it as it comes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comms.payloads import CALL_BYTES, stream_bytes
from comms.virtual_network import framed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

ENCODE_PARAMETERS_PER_S = 324e6
DECODE_PARAMETERS_PER_S = 468e6
APPLY_PARAMETERS_PER_S = 150e6
"""On two CPU cores; docs/experiments.md for the first two."""
ROUND_TRIPS = 2


@dataclass(frozen=True)
class Speed:
    """What one replica can do."""

    step_s: float | None
    """One inner step; None: nothing is known."""
    up_bits_per_second: float = math.inf
    down_bits_per_second: float = math.inf
    latency_s: float = 0.0
    encode_parameters_per_s: float = ENCODE_PARAMETERS_PER_S
    decode_parameters_per_s: float = DECODE_PARAMETERS_PER_S
    apply_parameters_per_s: float = APPLY_PARAMETERS_PER_S


@dataclass(frozen=True)
class Exchange:
    """What all replicas of a round have in common."""

    replicas: int
    parameters: int
    get_bytes: int
    """All payloads of one replica, as streams to whoever gets them."""
    line_bytes: int
    """The same as a line carries them."""
    put_line_bytes: int
    """The same on the way to the relay, as a line carries it; 0 under the direct route."""
    route: Literal["direct", "relay"]
    slowest_up_bits_per_second: float
    relay_up_bits_per_second: float = math.inf


@dataclass(frozen=True)
class PhaseSeconds:
    """(1) to (6)."""

    compute_s: float | None
    encode_s: float
    publish_s: float
    fetch_s: float
    decode_s: float
    apply_s: float

    @property
    def exchange_s(self) -> float:
        """All but compute."""
        return self.encode_s + self.publish_s + self.fetch_s + self.decode_s + self.apply_s

    @property
    def round_s(self) -> float | None:
        """One replica's own round (7)."""
        return None if self.compute_s is None else self.compute_s + self.exchange_s


def line_bytes(sizes_bytes: Iterable[int], call: Literal["get", "put"]) -> int:
    """p: payloads of these sizes as a line carries them, each in a call of its own: frames, packets, requests."""
    return sum(framed_bytes(stream_bytes(size, call)) + CALL_BYTES for size in sizes_bytes)


def phase_seconds(speed: Speed, exchange: Exchange, inner_steps: int) -> PhaseSeconds:
    """One replica's phases."""
    return PhaseSeconds(
        compute_s=None if speed.step_s is None else inner_steps * speed.step_s,  # (1)
        encode_s=exchange.parameters / speed.encode_parameters_per_s,  # (2)
        publish_s=_publish_s(speed, exchange),
        fetch_s=_fetch_s(speed, exchange),
        decode_s=exchange.replicas * exchange.parameters / speed.decode_parameters_per_s,  # (5)
        apply_s=exchange.parameters / speed.apply_parameters_per_s,  # (6)
    )


def _publish_s(speed: Speed, exchange: Exchange) -> float:
    if exchange.route == "direct":
        return 0.0
    return 8 * exchange.put_line_bytes / speed.up_bits_per_second + 2 * speed.latency_s  # (3)


def _fetch_s(speed: Speed, exchange: Exchange) -> float:
    others = exchange.replicas - 1
    if not others:
        return 0.0
    bits = 8 * others * exchange.line_bytes
    if exchange.route == "direct":
        seconds = bits / min(speed.down_bits_per_second, exchange.slowest_up_bits_per_second)
    else:
        seconds = max(bits / speed.down_bits_per_second, bits * exchange.replicas / exchange.relay_up_bits_per_second)
    return seconds + ROUND_TRIPS * 2 * speed.latency_s  # (4)
