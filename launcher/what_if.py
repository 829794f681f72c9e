"""`dist-train simulate RUN_DIR --what-if`: its options put together, and the answer for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from dist_train.config import ConfigError
from dist_train.rates import UNLIMITED, latency_s, line_of
from dist_train.report.quantities import bytes_text, seconds_text
from dist_train.what_if import Links, WhatIf
from launcher.options import link_text

if TYPE_CHECKING:
    from collections.abc import Sequence

COORDINATOR = "coordinator"


def links_of(link: str | None, lines: Sequence[str]) -> Links:
    """What --link says of all, and `--replica coordinator=LINE` of the coordinator. ConfigError names the option."""
    said = link_text(link or UNLIMITED, has_jitter=False)
    line = coordinator = line_of(said.line or UNLIMITED)
    for text in lines:
        name, _, given = text.partition("=")
        if name != COORDINATOR:
            raise ConfigError(f"--replica {text}: here all replicas are alike; only {COORDINATOR}=RATE can differ")
        try:
            coordinator = line_of(given)
        except ValueError as error:
            raise ConfigError(f"--replica {text}: {error}") from None
    rates = (line.up_bits_per_second, line.down_bits_per_second)
    coordinators = (coordinator.up_bits_per_second, coordinator.down_bits_per_second)
    up, down, coordinator_up, coordinator_down = (math.inf if r is None else r for r in (*rates, *coordinators))
    return Links(up, down, latency_s(said.latency) if said.latency else 0.0, coordinator_up, coordinator_down)


def table_of(answer: WhatIf) -> Table:
    """The answer, a column for each route."""
    measured = answer.measured
    title = (
        f"{answer.run} with {answer.replicas} replicas, from {measured.rounds} rounds of {measured.replicas} "
        f"(simulated seconds of a mean round)"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for route in answer.routes:
        table.add_column("all-gather (direct)" if route == "direct" else route, justify="right")
    parts = list(answer.routes.values())
    rows = {
        "round": [seconds_text(part.round_s) for part in parts],
        "computing": [f"{part.utilisation:.1%}" for part in parts],
        "compute, the slowest": [seconds_text(part.slowest_compute_s) for part in parts],
        "publish": [seconds_text(part.publish_s) for part in parts],
        "fetch": [seconds_text(part.fetch_s) for part in parts],
        "encode, decode, apply": [seconds_text(part.encode_s + part.decode_s + part.apply_s) for part in parts],
        "the coordinator's words": [seconds_text(part.words_s) for part in parts],
        "sent by a replica": [bytes_text(part.sent_bytes_per_replica) for part in parts],
        "received by a replica": [bytes_text(part.received_bytes_per_replica) for part in parts],
        "sent by the coordinator": [bytes_text(part.coordinator_sent_bytes) for part in parts],
        "all rounds": [seconds_text(part.run_s) for part in parts],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
