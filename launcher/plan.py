"""`dist-train plan`: the options of the command line, put together; the plan as text or JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from dist_train.config import ConfigError
from dist_train.planning.predict import Assumptions, predict
from dist_train.planning.terminal import render_terminal
from dist_train.rates import line_of, link_of

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.planning.contents import Plan

COLUMNS = 100


def make(
    config: Config, *, replicas: int | None, rate: str | None, bits_per_value: float | None, measured: bool
) -> Plan:
    """The plan of `config` with these assumptions; with `measured` it blocks for some seconds."""
    line = latency = None
    if rate is not None:
        try:
            link = link_of(rate)
            line_of(link.line or "")
        except ValueError as error:
            raise ConfigError(f"--rate: {error}") from None
        line, latency = link.line, link.latency
    found = None
    if measured:
        from dist_train.planning.measure import measure  # brings in transformers

        found = measure(config)
    return predict(config, Assumptions(replicas, line, latency, bits_per_value, found))


def show(plan: Plan) -> None:
    """Prints a plan for people."""
    # What is read later, from a file or a pipe, has no terminal's width.
    console = Console() if sys.stdout.isatty() else Console(width=COLUMNS)
    console.print(render_terminal(plan))
