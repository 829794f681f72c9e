"""What a run that was made would have taken with other links and more replicas. Nothing is trained.

Replica i of N works as the measured replica i mod R did, round by round; payloads have the sizes that theirs had. The
phases are those of `planning.round_seconds`, whose formulas are used here with measured speeds. Beside them:

    words   (p + c) N / u + 2 l        the proposal (p bytes) and the commit (c) go to each of N replicas through the
                                       coordinator's line up (u); then an acknowledgement and the next plan         (1)
    round   the slowest compute + encode + publish + fetch + decode + apply + words                                 (2)
    used    mean compute / round       utilisation                                                                  (3)

p and c grow with N: each lists every payload of the round. So what the coordinator says grows with N squared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from comms import wire
from comms.agreement import CommittedRound, Entry, Holder, Proposal
from comms.channel import MOST_MESSAGE_BYTES
from comms.leases import Segment
from comms.payloads import stream_bytes
from comms.virtual_network import framed_bytes
from dist_train.config import Config, ConfigError, load_kept
from dist_train.planning.round_seconds import Exchange, Speed, line_bytes, phase_seconds
from dist_train.report.facts import read_facts
from dist_train.report.metrics import read_rounds

if TYPE_CHECKING:
    from dist_train.report.metrics import RoundRow
    from dist_train.run_directory import RunDirectory

Route = Literal["direct", "relay"]
ROUTES: tuple[Route, ...] = ("direct", "relay")
CALLS: tuple[Literal["get", "put"], ...] = ("get", "put")
MOST_REPLICAS = 10_000
_HEX = "0" * 64


@dataclass(frozen=True)
class Links:
    """What is assumed of them."""

    up_bits_per_second: float = math.inf
    """Of each replica; and so on."""
    down_bits_per_second: float = math.inf
    latency_s: float = 0.0
    coordinator_up_bits_per_second: float = math.inf
    coordinator_down_bits_per_second: float = math.inf


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class RoutePart(_Part):
    """The mean round by one route: seconds, then bytes."""

    round_s: float
    compute_s: float
    """Of the mean replica."""
    slowest_compute_s: float
    encode_s: float
    publish_s: float
    fetch_s: float
    decode_s: float
    apply_s: float
    words_s: float
    utilisation: float
    run_s: float
    """All rounds of the measured run."""
    sent_bytes_per_replica: int
    """In a round, payloads as streams; and so on."""
    received_bytes_per_replica: int
    coordinator_sent_bytes: int
    """With its words."""
    coordinator_received_bytes: int
    round_bytes: int
    """Sent by anybody."""


class MeasuredPart(_Part):
    """What the run itself took."""

    replicas: int
    rounds: int
    round_s: float | None
    compute_s: float
    payload_bytes_per_replica: int


class WhatIf(_Part):
    """The answer."""

    run: str
    replicas: int
    measured: MeasuredPart
    routes: dict[Route, RoutePart]
    faster: Route
    problems: tuple[str, ...]


def what_if(directory: RunDirectory, replicas: int | None, links: Links) -> WhatIf:
    """The run in `directory` with so many `replicas`, or its own number, on such `links`.

    ConfigError when it tells too little.
    """
    config, rows = load_kept(directory.path), read_rounds(directory.metrics)
    rows = tuple(row for row in rows if row.phase_s and row.payload_bytes)
    if not rows:
        raise ConfigError(f"{directory.path}: no committed round tells what its phases took; what-if needs one")
    replicas = replicas or len(rows[0].contributors)
    if replicas > MOST_REPLICAS:
        raise ConfigError(f"--replicas {replicas}: what-if knows 1 to {MOST_REPLICAS}")
    facts = read_facts(directory.facts)
    fragments = max(1, len(facts.fragments))
    parameters = facts.exchanged_parameters or 1
    question = _Question(config, replicas, links, fragments, parameters)
    routes = {route: _route(question, rows, route) for route in ROUTES}
    durations = [row.duration_s for row in rows if row.duration_s is not None]
    measured = MeasuredPart(
        replicas=len(rows[0].contributors),
        rounds=len(rows),
        round_s=_mean(durations) if durations else None,
        compute_s=_mean([_mean(_phase(row, "compute")) for row in rows]),
        payload_bytes_per_replica=round(_mean([_mean(list(row.payload_bytes.values())) for row in rows])),
    )
    return WhatIf(
        run=config.run.name,
        replicas=replicas,
        measured=measured,
        routes=routes,
        faster=min(ROUTES, key=lambda route: routes[route].round_s),
        problems=tuple(_problems(config, replicas, fragments, routes)),
    )


@dataclass(frozen=True)
class _Question:
    config: Config
    replicas: int
    links: Links
    fragments: int
    parameters: int


def _route(question: _Question, rows: Sequence[RoundRow], route: Route) -> RoutePart:
    rounds = [_round(question, row, route) for row in rows]
    mean = {name: _mean([one[name] for one in rounds]) for name in rounds[0]}
    whole = {name: round(value) for name, value in mean.items() if "_bytes" in name}
    utilisation = mean["compute_s"] / mean["round_s"] if mean["round_s"] else 1.0  # (3)
    run_s = sum(one["round_s"] for one in rounds)
    return RoutePart.model_validate({**mean, **whole, "utilisation": utilisation, "run_s": run_s})


def _round(question: _Question, row: RoundRow, route: Route) -> dict[str, float]:
    """One measured round over again."""
    replicas, links, steps = question.replicas, question.links, question.config.steps_per_round
    fragments, parameters = question.fragments, question.parameters
    compute_s = list(islice(cycle(_phase(row, "compute")), replicas))
    payload = round(_mean(list(row.payload_bytes.values())))
    sizes = (-(-payload // fragments),) * fragments
    get_bytes, put_bytes = (sum(stream_bytes(size, call) for size in sizes) for call in CALLS)
    get_line_bytes, put_line_bytes = (line_bytes(sizes, call) for call in CALLS)
    relayed = route == "relay"
    exchange = Exchange(
        replicas, parameters, get_bytes, get_line_bytes, put_line_bytes if relayed else 0, route,
        links.up_bits_per_second, links.coordinator_up_bits_per_second,
    )  # fmt: skip
    contributors = max(1, len(row.contributors))
    speed = Speed(
        max(compute_s) / steps,
        links.up_bits_per_second,
        links.down_bits_per_second,
        links.latency_s,
        _per_second(parameters, max(_phase(row, "encode"))),
        _per_second(parameters * contributors, max(_phase(row, "decode"))),
        _per_second(parameters, max(_phase(row, "apply")) + max(_phase(row, "validate"))),
    )
    phases = phase_seconds(speed, exchange, steps)
    publish_s = phases.publish_s
    if relayed:  # all of them put at once
        publish_s = max(publish_s, 8 * replicas * put_line_bytes / links.coordinator_down_bits_per_second)
    words = words_bytes(replicas, fragments)
    words_s = 8 * replicas * framed_bytes(words) / links.coordinator_up_bits_per_second + 2 * links.latency_s  # (1)
    slowest_s = max(compute_s)
    got = (replicas - 1) * get_bytes
    sent = put_bytes if relayed else got
    coordinator_sent = replicas * (words + (got if relayed else 0))
    return {
        "round_s": slowest_s + phases.exchange_s - phases.publish_s + publish_s + words_s,  # (2)
        "compute_s": _mean(compute_s),
        "slowest_compute_s": slowest_s,
        "encode_s": phases.encode_s,
        "publish_s": publish_s,
        "fetch_s": phases.fetch_s,
        "decode_s": phases.decode_s,
        "apply_s": phases.apply_s,
        "words_s": words_s,
        "sent_bytes_per_replica": sent,
        "received_bytes_per_replica": got,
        "coordinator_sent_bytes": coordinator_sent,
        "coordinator_received_bytes": replicas * put_bytes if relayed else 0,
        "round_bytes": replicas * sent + coordinator_sent,
    }


def words_bytes(replicas: int, fragments: int) -> int:
    """What the coordinator says to each replica in a round of so many payloads: the proposal and the commit."""
    empty, one = (_said(number, fragments) for number in (0, 1))
    return empty + replicas * (one - empty)


def _said(replicas: int, fragments: int) -> int:
    names = [f"v{number:03}" for number in range(replicas)]
    manifest = tuple(
        Entry(name, f"layer.{fragment}", _HEX, 1 << 20, 1 << 16) for name in names for fragment in range(fragments)
    )
    holders = tuple(Holder(name, "127.0.0.1:50000") for name in names)
    leases = {name: (Segment(0, 1 << 24, 1 << 25),) for name in names}
    said = (Proposal(1, 1, manifest, holders), CommittedRound(1, manifest, leases, holders))
    return sum(wire.coordinator_message_to_pb(message).ByteSize() for message in said)


def _problems(config: Config, replicas: int, fragments: int, routes: Mapping[Route, RoutePart]) -> list[str]:
    found = []
    if (words := words_bytes(replicas, fragments) // 2) > MOST_MESSAGE_BYTES:
        found.append(
            f"a proposal of {replicas} replicas is about {words} bytes, and one message has at most "
            f"{MOST_MESSAGE_BYTES}: such a run does not work yet"
        )
    for route, part in routes.items():
        if part.fetch_s > (deadline_s := config.exchange.fetch_deadline_s):
            found.append(
                f"{route}: fetching takes {part.fetch_s:.0f} s; raise exchange.fetch_deadline_s = {deadline_s:g}"
            )
    return found


def _phase(row: RoundRow, phase: str) -> list[float]:
    """Seconds of each replica that told, by name."""
    return [row.phase_s[name].get(phase, 0.0) for name in sorted(row.phase_s)]


def _per_second(parameters: int, seconds: float) -> float:
    return parameters / seconds if seconds > 0 else math.inf


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
