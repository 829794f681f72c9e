"""Texts and numbers of the config that are checked as they are read: names, hosts, rates, addresses."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from comms.multiaddress import listen_host, peer_of
from dist_train.rates import bits_per_second, latency_s, line_of, seconds

if TYPE_CHECKING:
    from collections.abc import Callable


def _identifier(value: str) -> str:
    if (
        not value
        or len(value) > 64
        or not all((c.isalnum() and c.isascii()) or c in "-_." for c in value)
        or value[0] in "-."
    ):
        raise ValueError("use 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter, a digit or '_'")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%\[\]-]*", value):
        raise ValueError('a host is a name or an address, as ssh takes it: "gpu1", "user@192.0.2.7"')
    return value


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a text of one line is wanted")
    return value


def _slurm_option(value: str) -> str:
    if not re.fullmatch(r"--[a-z][a-z0-9-]*(=[^\s]+)?", value):
        raise ValueError('an option of sbatch is written --name or --name=value, without spaces: "--time=04:00:00"')
    return value


def _planner(value: str) -> str:
    name, colon, degree = value.partition(":")
    if value in ("off", "adaptive", "best-homogeneous") or (name == "static" and colon and degree.isdecimal()):
        return value
    raise ValueError("choose adaptive, best-homogeneous, static:D with a degree D, or off")


def _page_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("give it as host:port; port 0 takes any free port")
    return value


def _readable_by(parse: Callable[[str], object]) -> AfterValidator:
    """Keeps the text as it was written, if `parse` can read it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


Identifier = Annotated[str, AfterValidator(_identifier)]
Host = Annotated[str, AfterValidator(_host)]
OneLine = Annotated[str, AfterValidator(_one_line)]
SlurmOption = Annotated[str, AfterValidator(_slurm_option)]
PageAddress = Annotated[str, AfterValidator(_page_address)]
PlannerName = Annotated[str, AfterValidator(_planner)]
RateText = Annotated[str, _readable_by(bits_per_second)]
LineText = Annotated[str, _readable_by(line_of)]
LatencyText = Annotated[str, _readable_by(latency_s)]
PeerText = Annotated[str, _readable_by(peer_of)]
ListenText = Annotated[str, _readable_by(listen_host)]
TimeText = Annotated[str, _readable_by(seconds)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]
RecordSeconds = Annotated[float, Field(ge=3.0, le=3600.0)]
