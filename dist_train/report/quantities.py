"""Figures for people: the one place where a byte, a second or a rate becomes text."""

from __future__ import annotations

import math
from collections.abc import Mapping

DECIMAL_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
UNKNOWN = "-"


def bytes_text(num_bytes: float | None) -> str:
    """41.2 kB, in powers of 1000."""
    return UNKNOWN if num_bytes is None else f"{_scaled(num_bytes, separator=' ')}B"


def count_text(count: float | None) -> str:
    """18.3k, in powers of 1000."""
    return UNKNOWN if count is None else _scaled(count, separator="")


def rate_text(bits_per_second: float | None) -> str:
    """50.0 Mbit/s, in powers of 1000."""
    return UNKNOWN if bits_per_second is None else f"{_scaled(bits_per_second, separator=' ')}bit/s"


def seconds_text(seconds: float | None) -> str:
    """0.4s, 12s, 1m20s, 3h05m."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def short_seconds_text(seconds: float | None) -> str:
    """41 ms, 0.2 ms; from ten seconds on as any other."""
    if seconds is None or not math.isfinite(seconds) or seconds >= 9.95:
        return seconds_text(seconds)
    if seconds >= 0.9995:
        return f"{seconds:.2f}s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 9.95e-3 else f"{1e3 * seconds:.1f} ms"


def groups_text(groups: Mapping[int, int]) -> str:
    """61% of 1, 39% of 2: the shares of groups by their number of ranks."""
    total = sum(groups.values())
    return ", ".join(f"{count / total:.0%} of {degree}" for degree, count in groups.items()) or UNKNOWN


def loss_text(loss: float | None) -> str:
    """2.713; what is not a number is said, not hidden."""
    return UNKNOWN if loss is None else f"{loss:.3f}"


def ratio_text(ratio: float | None) -> str:
    """43x, 1.8x."""
    if ratio is None:
        return UNKNOWN
    return f"{ratio:,.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x"


def _scaled(value: float, separator: str) -> str:
    for step, letter in DECIMAL_STEPS:
        # 999.95 would be printed as 1000.0 of the smaller unit.
        if abs(value) >= step * 0.99995:
            return f"{value / step:.1f}{separator}{letter}"
    return f"{value:.0f}{separator}"
