"""Several runs beside each other: one row each, the first is what the others are held against."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from dist_train.report.quantities import UNKNOWN, bytes_text, count_text, loss_text, seconds_text
from dist_train.report.traffic import PSEUDO_GRADIENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.report.contents import Report


def comparison(reports: Sequence[Report]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row of texts for each run."""
    headings = ("run", "method", "rounds", "tokens", "loss", "validation", "sent", "vs first", "elapsed", "computing")
    return headings, [_row(report, reports[0]) for report in reports]


def render_comparison(reports: Sequence[Report]) -> Table:
    """The comparison for the terminal."""
    headings, rows = comparison(reports)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Compared", title_justify="left", title_style="bold")
    for n, heading in enumerate(headings):
        table.add_column(heading, justify="left" if n < 2 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def comparison_json(reports: Sequence[Report]) -> str:
    """`runs`: the contract of each, the first first."""
    return json.dumps({"runs": [json.loads(report.to_json()) for report in reports]}, indent=2)


def _row(report: Report, first: Report) -> tuple[str, ...]:
    ours, theirs = pseudo_gradient_bytes(report), pseudo_gradient_bytes(first)
    elapsed_s = report.curve[-1].elapsed_s if report.curve else None
    return (
        report.run,
        report.method,
        f"{report.rounds}/{report.rounds_planned}",
        count_text(report.tokens),
        loss_text(report.loss.train_last),
        loss_text(report.loss.validation_last),
        bytes_text(ours),
        f"{ours / theirs:,.2f}x" if theirs else UNKNOWN,
        seconds_text(elapsed_s),
        UNKNOWN if report.utilisation is None else f"{report.utilisation:.1%}",
    )


def pseudo_gradient_bytes(report: Report) -> int:
    """What all members sent of them."""
    return sum(part.sent_bytes for part in report.traffic if part.kind == PSEUDO_GRADIENT)
