"""A rate, as a pure function of time: when the last of so many bytes has left a link that sends them one after another.

With rate r, and bytes b that were there at time t, behind others that keep the link busy until f:

    (1) s = max(f, t, now - LATE)        when they begin to leave
    (2) f' = s + 8 w(b) / r              when the last of them has left: the answer, and the next f
    (3) w(b) = b + 52 ceil(b / 1448)     what they are on the wire: as many full packets as they fill

An idle link saves nothing up: there is no burst after a pause. Only whoever waits for f' and wakes up late, on a busy
machine, gets the lost time back, because t says when the bytes were there and not when somebody saw them; at most LATE.
So in any T seconds at most r (T + LATE) bits leave, and r T where nobody is late.
"""

from __future__ import annotations

SEGMENT_BYTES = 1448
"""Of a full packet of 1500 bytes, what is left for the stream, with TCP's timestamps."""
HEADER_BYTES = 52
MOST_LATE_S = 0.25


def wire_bytes(num_bytes: int) -> int:
    """What so many bytes of a TCP stream come to in IP packets."""
    return num_bytes + HEADER_BYTES * -(-num_bytes // SEGMENT_BYTES)  # (3)


class Bucket:
    """One rate, which may be changed while it is used; None is no limit."""

    def __init__(self, bits_per_second: float | None = None) -> None:
        self.bits_per_second = bits_per_second
        self._free_s = float("-inf")

    def reserve(self, num_bytes: int, ready_s: float, now_s: float) -> float:
        """When the last of `num_bytes` that were there at `ready_s` has left; they take their turn from now on."""
        start_s = max(self._free_s, ready_s, now_s - MOST_LATE_S)  # (1)
        if self.bits_per_second is None:
            return start_s
        self._free_s = start_s + 8 * wire_bytes(num_bytes) / self.bits_per_second  # (2)
        return self._free_s
