"""Texts and numbers of the config that are checked as they are read: names, hosts, rates, addresses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from comms.address import host_and_port
from comms.multiaddress import listen_host, peer_of
from dist_train.rates import bits_per_second, latency_s, line_of, seconds

if TYPE_CHECKING:
    from collections.abc import Callable


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a text of one line is wanted")
    return value


def _planner(value: str) -> str:
    name, colon, degree = value.partition(":")
    if value in ("off", "adaptive", "best-homogeneous") or (name == "static" and colon and degree.isdecimal()):
        return value
    raise ValueError("choose adaptive, best-homogeneous, static:D with a degree D, or off")


def _matching(pattern: str, rule: str) -> AfterValidator:
    """Refuses what does not look like `pattern`, with the rule in words."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(rule)
        return value

    return AfterValidator(check)


def _readable_by(parse: Callable[[str], object]) -> AfterValidator:
    """Keeps the text as it was written, if `parse` can read it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


Identifier = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}",
        "use 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter, a digit or '_'",
    ),
]
Host = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%\[\]-]*",
        'a host is a name or an address, as ssh takes it: "gpu1", "user@192.0.2.7"',
    ),
]
DeviceName = Annotated[
    str,
    _matching(r"auto|cpu|cuda(:[0-9]{1,3})?", 'choose "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1"'),
]
OneLine = Annotated[str, AfterValidator(_one_line)]
SlurmOption = Annotated[
    str,
    _matching(
        r"--[a-z][a-z0-9-]*(=[^\s]+)?",
        'an option of sbatch is written --name or --name=value, without spaces: "--time=04:00:00"',
    ),
]
PlannerName = Annotated[str, AfterValidator(_planner)]
AddressText = Annotated[str, _readable_by(host_and_port)]
RateText = Annotated[str, _readable_by(bits_per_second)]
LineText = Annotated[str, _readable_by(line_of)]
LatencyText = Annotated[str, _readable_by(latency_s)]
PeerText = Annotated[str, _readable_by(peer_of)]
ListenText = Annotated[str, _readable_by(listen_host)]
TimeText = Annotated[str, _readable_by(seconds)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]
RecordSeconds = Annotated[float, Field(ge=3.0, le=3600.0)]
