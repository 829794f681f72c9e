"""Rates and times as people write them, "50mbit" and "40ms", as numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNLIMITED = "unlimited"
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_LEAST_BITS_PER_SECOND, _MOST_BITS_PER_SECOND = 8e3, 1e11
_MOST_SECONDS = 86_400.0
_LONGEST_LATENCY_S = 60.0
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*")


@dataclass(frozen=True)
class LineText:
    """What "10mbit/50mbit" says of a line; None is no limit."""

    up_bits_per_second: float | None
    down_bits_per_second: float | None


@dataclass(frozen=True)
class LinkText:
    """What "50mbit,40ms,2ms" says: a line, a latency, a jitter."""

    line: str | None
    latency: str | None
    jitter: str | None


def bits_per_second(text: str) -> float | None:
    """The rate in "50mbit"; None for "unlimited". ValueError says what is wrong and what to write."""
    if text.strip() == UNLIMITED:
        return None
    number, unit = _split(text)
    if unit.lower() not in _BITS:
        raise ValueError(
            f'"{text}" is no rate: write a number and {_one_of(_BITS)}, such as "50mbit", or "{UNLIMITED}"'
        )
    rate = number * _BITS[unit.lower()]
    if not _LEAST_BITS_PER_SECOND <= rate <= _MOST_BITS_PER_SECOND:
        raise ValueError(f'"{text}" is out of bounds: links here have 8kbit to 100gbit, or are "{UNLIMITED}"')
    return rate


def seconds(text: str, most_s: float = _MOST_SECONDS) -> float:
    """The time in "40ms". ValueError says what is wrong and what to write."""
    number, unit = _split(text)
    if unit not in _SECONDS:
        raise ValueError(f'"{text}" is no time: write a number and {_one_of(_SECONDS)}, such as "40ms"')
    if number * _SECONDS[unit] > most_s:
        raise ValueError(f'"{text}" is too long: at most {most_s:g} s')
    return number * _SECONDS[unit]


def latency_s(text: str) -> float:
    """The same, of what a link can reasonably take."""
    return seconds(text, _LONGEST_LATENCY_S)


def line_of(text: str) -> LineText:
    """The line that "50mbit" (both ways) or "10mbit/50mbit" (up/down) describes. ValueError when it is neither."""
    up, slash, down = text.partition("/")
    return LineText(bits_per_second(up), bits_per_second(down if slash else up))


def link_of(text: str) -> LinkText:
    """The parts of "50mbit,40ms,2ms": a line, a latency and a jitter, any of which may be left out at the end."""
    parts = [part.strip() or None for part in text.split(",")]
    if len(parts) > 3:
        raise ValueError(f'"{text}" has more than a rate, a latency and a jitter')
    line, latency, jitter = [*parts, None, None][:3]
    for value, parse in ((line, line_of), (latency, latency_s), (jitter, latency_s)):
        if value is not None:
            parse(value)
    return LinkText(line, latency, jitter)


def _split(text: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    return (float(match[1]), match[2]) if match else (0.0, "?")


def _one_of(units: dict[str, float]) -> str:
    return "one of " + ", ".join(units)
