"""`dist-train plan`: the options of the command line, put together; the plan as text or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dist_train.planning.assumptions import Assumptions
from dist_train.planning.predict import predict
from dist_train.planning.terminal import render_terminal
from launcher.console import console
from launcher.options import link_text

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.planning.contents import Plan


def make(
    config: Config, *, replicas: int | None, link: str | None, bits_per_value: float | None, measured: bool
) -> Plan:
    """The plan of `config` with these assumptions; with `measured` it blocks for some seconds."""
    said = link_text(link or "", has_jitter=False)
    found = None
    if measured:
        from dist_train.planning.measure import measure  # brings in transformers

        found = measure(config)
    return predict(config, Assumptions(replicas, said.line, said.latency, bits_per_value, found))


def show(plan: Plan) -> None:
    """Prints a plan for people."""
    console().print(render_terminal(plan))
