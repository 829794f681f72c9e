"""The run as a page for a browser: who is where, and how the last round went. Pure; what members sent is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from comms.agreement import RoundSummary
from dist_train.report.quantities import bytes_text, count_text, loss_text, seconds_text
from dist_train.watch.pages import Page
from protos import round_pb2 as pb

REFRESH_S = 5
MOST_MEMBERS = 500
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; }
progress { width: 100%; }
"""


def status_page(status: pb.StatusReply, summary: RoundSummary | None) -> Page:
    """The page, which asks for itself again every few seconds."""
    done = max(0, status.round - 1) if status.phase not in ("done", "ending") else status.total_rounds
    failure = f", {escape(status.failure)}" if status.failure else ""
    where = f"round {status.round} of {status.total_rounds}: {escape(status.phase)}{failure}"
    parts = [
        f"<h1>{escape(status.run)}</h1>",
        f"<p>{where}, up {seconds_text(status.uptime_s)}</p>",
        f'<progress max="{max(1, status.total_rounds)}" value="{done}"></progress>',
        _facts(status, summary),
        _members(status, summary),
        _absent(summary),
    ]
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(status.run)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )
    return Page("text/html; charset=utf-8", document.encode("utf-8", errors="replace"))


def _facts(status: pb.StatusReply, summary: RoundSummary | None) -> str:
    loss, validation = (None if math.isnan(value) else value for value in (status.loss, status.validation_loss))
    rows = [
        ("loss", loss_text(loss)),
        ("validation", loss_text(validation)),
        ("tokens", count_text(status.tokens)),
        ("payloads of the last round", bytes_text(status.round_payload_bytes)),
    ]
    if summary is not None:
        tokens = sum(summary.tokens.values())
        rows.append(("last round", seconds_text(summary.round_s)))
        rows.append(("speed", f"{count_text(tokens / summary.round_s if summary.round_s else None)} tokens/s"))
        rows.append(("left", seconds_text((status.total_rounds - summary.round) * summary.round_s)))
    return _table((), rows)


def _members(status: pb.StatusReply, summary: RoundSummary | None) -> str:
    rows = [
        (
            member.replica,
            member.state,
            str(member.applied_round),
            member.address,
            *(_phase_text(summary, member.replica, phase) for phase in ("compute", "wait", "fetch")),
        )
        for member in status.members[:MOST_MEMBERS]
    ]
    return _table(("replica", "state", "applied", "address", "computed", "waited", "fetched"), rows)


def _phase_text(summary: RoundSummary | None, replica: str, phase: str) -> str:
    return seconds_text(None if summary is None else summary.phase_s.get(replica, {}).get(phase))


def _absent(summary: RoundSummary | None) -> str:
    if summary is None or not summary.absent:
        return ""
    rows = [(absence["replica"], absence["reason"]) for absence in summary.absent]
    return f"<p>round {summary.round} was committed without:</p>" + _table(("replica", "why"), rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>" if headings else f"<table>{body}</table>"
