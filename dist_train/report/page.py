"""A report as one HTML page that holds all it needs: nothing is fetched, and what members sent is text.

The page has the report's JSON inside (`#report`), the same that `report --json` prints. Its policy forbids every
request, so that a page which somebody passes on tells nobody that it was opened.
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from dist_train.baselines import FORMULAS
from dist_train.report.compare import comparison
from dist_train.report.plots import (
    BASELINE_NAMES,
    COLOURS,
    PHASE_COLOURS,
    Figure,
    figures,
    is_of_sequences,
    loss_figures,
)
from dist_train.report.quantities import (
    UNKNOWN,
    bytes_text,
    count_text,
    groups_text,
    loss_text,
    rate_text,
    ratio_text,
    seconds_text,
    short_seconds_text,
)
from dist_train.report.timeline import PHASES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dist_train.report.contents import Report

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
MOST_SPANS = 60_000
"""Spans of the timeline that a page holds: of the last rounds, when there are more."""
MOST_ROWS = 200


def render_page(report: Report, others: Sequence[Report] = ()) -> str:
    """The whole page; `others` are laid over the loss of the first."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - 5 MB, which only a page needs

    drawn = [figure for figure in figures(report) if not others or not figure.id.startswith("loss-")]
    overlaid = loss_figures([report, *others]) if others else []
    sections = [
        _headline(report),
        _section("Compared", _comparison([report, *others]) + _plots(overlaid)) if others else "",
        _section("Loss", "" if others else _loss(report) + _plots(_named(drawn, "loss-"))),
        _section("Traffic", _traffic(report) + _plots(_named(drawn, "traffic-", "matrix", "bytes-"))),
        _section("Against other methods", _baselines(report) + _plots(_named(drawn, "baselines"))),
        _section("Timeline", _timeline(report) + _plots(_named(drawn, "seconds-"))),
        _section("Replicas", _replicas(report)),
        _section("Sequence plans", _sequences(report) + _plots(_named(drawn, "sequence-"))),
        _section("Links", _links(report) + _plots(_named(drawn, "links"))),
        _section("Health of the compression", _health(report) + _plots(_named(drawn, "health-"))),
        _section("Faults", _faults(report)),
        _section("Rounds", _rounds(report)),
    ]
    resources = files("dist_train.report")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
            f"<title>{escape(report.run)}: what it sent</title>",
            f"<style>{resources.joinpath('page.css').read_text(encoding='utf-8')}</style></head><body>",
            *sections,
            _carried("report", json.loads(report.to_json())),
            _carried("figures", [figure.to_dict() for figure in (*overlaid, *drawn)]),
            _carried("timeline", _spans(report)),
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{resources.joinpath('page.js').read_text(encoding='utf-8')}</script>",
            "</body></html>",
        ]
    )


def _carried(name: str, value: object) -> str:
    # "<" never stands in it, so nothing that was sent can end the element.
    return f'<script type="application/json" id="{name}">{json.dumps(value).replace("<", chr(92) + "u003c")}</script>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _named(drawn: Iterable[Figure], *prefixes: str) -> list[Figure]:
    return [figure for figure in drawn if figure.id.startswith(prefixes)]


def _plots(drawn: Sequence[Figure]) -> str:
    notes = {f.id: f'<p class="dim note">{f.note}</p>' if f.note else "" for f in drawn}
    shown = (
        f'<figure><h3>{f.title}</h3>{notes[f.id]}<div class="plot" id="plot-{f.id}"></div></figure>' for f in drawn
    )
    return f'<div class="plots">{"".join(shown)}</div>' if drawn else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """Cells are escaped here, and nowhere before."""
    kinds = [' class="text"' if n in text_columns else "" for n in range(len(headings))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, headings, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _headline(report: Report) -> str:
    part = report.pseudo_gradient
    cards = [
        ("sent by all members, in all", bytes_text(report.sent_bytes)),
        ("pseudo-gradients for each replica and round", bytes_text(report.sent_bytes_per_replica_round)),
        ("less exchanged than with DDP, fp32", ratio_text(report.ratios.get("ddp_fp32"))),
        ("less exchanged than with DDP, bf16", ratio_text(report.ratios.get("ddp_bf16"))),
        ("less exchanged than with DiLoCo, fp32", ratio_text(report.ratios.get("diloco_fp32"))),
        ("less exchanged than with DiLoCo, bf16", ratio_text(report.ratios.get("diloco_bf16"))),
        ("less than SparseLoCo's reference wire", ratio_text(report.ratios.get("sparseloco_reference_wire"))),
        ("of the time computing", UNKNOWN if report.utilisation is None else f"{report.utilisation:.1%}"),
        (
            "bits a parameter and exchange",
            UNKNOWN if part.bits_per_parameter is None else f"{part.bits_per_parameter:.3f}",
        ),
        ("validation loss", loss_text(report.loss.validation_last)),
        ("rounds", f"{report.rounds} of {report.rounds_planned}"),
        ("tokens", count_text(report.tokens)),
    ]
    facts = (
        f"{report.method}, {len(report.replicas)} replicas, {report.model.name or UNKNOWN} with "
        f"{count_text(report.model.parameters)} parameters, config {report.config_digest[:12]}"
    )
    shown = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in cards
    )
    warning = '<p class="bad">no round was committed</p>' if not report.rounds_detail else ""
    return (
        f'<h1>{escape(report.run)} <span class="dim">{report.status}</span></h1>'
        f'<p class="dim">{escape(facts)}</p>{warning}<div class="cards">{shown}</div>'
    )


def _loss(report: Report) -> str:
    if not report.curve:
        return ""
    guess = report.loss.unigram_entropy
    guessing = "" if guess is None else f" Who only knows how often each token occurs would reach {loss_text(guess)}."
    return (
        "<p class='dim'>How surprised the model is by a token, in nats (1 nat = 1.44 bits): lower is better. Validation"
        f" documents are never trained on.{guessing}</p>"
    )


def _traffic(report: Report) -> str:
    rows = [
        (
            part.kind.replace("_", " "),
            bytes_text(part.sent_bytes),
            bytes_text(part.received_bytes),
            bytes_text(part.predicted_bytes),
            f"{part.sent_bytes / part.predicted_bytes:.1%}" if part.predicted_bytes else UNKNOWN,
        )
        for part in report.traffic
        if part.sent_bytes or part.received_bytes or part.predicted_bytes
    ]
    if not rows:
        return ""
    rows.append(("all", bytes_text(report.sent_bytes), bytes_text(report.received_bytes), "", ""))
    words = (
        "<p class='dim'>Pseudo-gradients are what the replicas exchange after each round. Activations and their"
        " gradients go from stage to stage of a pipeline, sequences all to all among ranks that share documents; intra"
        " replica is what else the ranks of a replica send each other, state transfer what a latecomer begins with,"
        " control all messages without tensors. Predicted is what closed forms say, which never look at what was"
        " counted; ratio is sent over predicted.</p>"
    )
    return words + _table(("kind", "sent", "received", "predicted", "ratio"), rows)


def _baselines(report: Report) -> str:
    known = report.baselines.model_dump()
    rows = [
        (name, bytes_text(known[f"{key}_bytes"]), ratio_text(report.ratios.get(key)), FORMULAS[key])
        for key, name in BASELINE_NAMES.items()
        if known[f"{key}_bytes"]
    ]
    if not rows:
        return ""
    words = (
        "<p class='dim'>For the same tokens and the same replicas. R replicas contribute to a round, P parameters, H"
        " inner steps in a round, K values that SparseLoCo keeps; an all-reduce is a ring, the least that one can send."
        " Held against each other is what replicas exchange: control, and what the stages or ranks of one replica send"
        " each other under any method, are left out of the baselines and of this run.</p>"
    )
    return words + _table(("method", "would have sent", "this run sends less by", "formula"), rows, (3,))


def _timeline(report: Report) -> str:
    if not report.timeline:
        return ""
    left_out = "" if len(_shown_spans(report)) == len(report.timeline) else " Only the last rounds are on this page."
    return (
        "<p class='dim'>What each replica did, from the opening of the round, by the coordinator's clock: the longest"
        f" bar keeps the others waiting.{left_out}</p>"
        '<div class="bar"><button id="earlier">earlier</button><button id="later">later</button>'
        '<label><input type="checkbox" id="exchange"> only the exchange</label>'
        '<span id="rounds-shown"></span></div><div class="plot" id="plot-timeline"></div>'
    )


def _shown_spans(report: Report) -> list[tuple[int, str, tuple[tuple[str, float, float], ...]]]:
    shown, left = [], MOST_SPANS
    for part in reversed(report.timeline):
        left -= len(part.spans)
        if left < 0:
            break
        shown.append((part.round, part.replica, part.spans))
    return shown[::-1]


def _spans(report: Report) -> dict[str, object]:
    """What the page draws the timeline from; names are escaped as plotly.js wants them."""
    parts = [
        {"round": r, "replica": escape(replica), "spans": [(escape(phase), *rest) for phase, *rest in spans]}
        for r, replica, spans in _shown_spans(report)
    ]
    others = sorted({phase for part in report.timeline for phase, _, _ in part.spans} - set(PHASES))
    phases = [escape(phase) for phase in (*PHASES, *others)]
    return {
        "parts": parts,
        "phases": phases,
        "colours": {phase: PHASE_COLOURS.get(phase, COLOURS[-1]) for phase in phases},
        "started": {detail.round: detail.started_s for detail in report.rounds_detail},
    }


def _replicas(report: Report) -> str:
    rows = [
        (
            replica.id,
            replica.kind,
            str(replica.rounds_committed),
            count_text(replica.tokens),
            bytes_text(replica.sent_bytes),
            bytes_text(replica.received_bytes),
            seconds_text(replica.phase_s.get("compute")),
            seconds_text(replica.phase_s.get("wait")),
            UNKNOWN if replica.utilisation is None else f"{replica.utilisation:.1%}",
        )
        for replica in report.replicas[:MOST_ROWS]
    ]
    headings = ("replica", "kind", "rounds", "tokens", "sent", "received", "computing", "waiting", "utilisation")
    return _table(headings, rows)


def _sequences(report: Report) -> str:
    if not report.sequences:
        return ""
    rows = [
        (
            part.replica,
            str(part.steps),
            *map(short_seconds_text, (part.predicted_s, part.measured_s, part.reduce_s)),
            UNKNOWN if part.gap is None else f"{part.gap:.1%}",
            *map(short_seconds_text, (part.planning_s, part.waiting_s)),
            str(part.late),
            groups_text(part.groups),
            ", ".join(f"{name} ({count})" for name, count in part.planners.items()),
        )
        for part in report.sequences
    ]
    words = (
        "<p class='dim'>How the ranks of a replica share the documents of each inner step; seconds are means of a step."
        " A plan puts each document on a group of one or more ranks. Gap: how much slower the plan is than a bound that"
        " no plan can beat, by the cost model that was fitted to this machine. Planning runs beside the step before it;"
        " waiting is what was left of it. Late: steps that could not wait for their plan and ran by a quick one.</p>"
    )
    headings = (
        "replica", "steps", "predicted", "measured", "summing", "gap", "planning", "waiting", "late",
        "groups of ranks", "planned by",
    )  # fmt: skip
    return words + _table(headings, rows)


def _links(report: Report) -> str:
    """Where nothing was limited, there is nothing to hold the rates against."""
    headings = ("link", "received", "goodput", "busy", "limit", "at the limit", "latency", "enforced by")
    is_limited = any(link.limit_bits_per_second or link.latency_s for link in report.links)
    shown = len(headings) if is_limited else 4
    rows = [
        (
            f"{link.from_} → {link.to}",
            bytes_text(link.received_bytes),
            rate_text(link.goodput_bits_per_second),
            seconds_text(link.busy_s),
            rate_text(link.limit_bits_per_second),
            seconds_text(link.predicted_s),
            short_seconds_text(link.latency_s),
            link.enforced_by,
        )[:shown]
        for link in report.links[:MOST_ROWS]
    ]
    words = (
        "<p class='dim'>Payloads and snapshots alone. Busy: seconds in which any of them was under way; goodput: bytes"
        " over these; at the limit: seconds that they take at the link's limit. A star stands for everybody: a member's"
        " whole line.</p>"
    )
    return words + _table(headings[:shown], rows) if rows else ""


def _health(report: Report) -> str:
    part = report.pseudo_gradient
    if part.bits_per_parameter is None:
        return ""
    density = UNKNOWN if part.density is None else f"{part.density:.2%}"
    value = UNKNOWN if part.bits_per_value is None else f"{part.bits_per_value:.2f}"
    rows = [("values sent", density), ("bits a sent value", value), ("less than fp32", ratio_text(part.ratio_vs_fp32))]
    last = max((health.round for health in report.health), default=0)
    rows += [
        (f"{name.replace('_', ' ')} of {health.replica}, round {last}", f"{figure:.4g}")
        for health in report.health
        if health.round == last
        for name, figure in sorted(health.figures.items())
        if not is_of_sequences(report, name)
    ]
    return _table(("figure", "value"), rows[:MOST_ROWS])


def _faults(report: Report) -> str:
    if not report.faults:
        return (
            "<p class='dim'>Every round was committed with everybody, on the same digest.</p>" if report.rounds else ""
        )
    rows = [(str(fault.round), fault.replica, fault.reason) for fault in report.faults[-MOST_ROWS:]]
    return _table(("round", "without", "why"), rows, (1, 2))


def _rounds(report: Report) -> str:
    rows = [
        (
            str(detail.round),
            loss_text(detail.loss),
            loss_text(detail.validation_loss),
            count_text(detail.tokens),
            bytes_text(detail.sent_bytes),
            seconds_text(detail.compute_s),
            seconds_text(detail.exchange_s),
            ", ".join(detail.contributors),
            detail.theta_digest[:8] + ("" if detail.agreed else " DIFFERED"),
        )
        for detail in report.rounds_detail[-MOST_ROWS:]
    ]
    headings = ("round", "loss", "validation", "tokens", "sent", "compute", "exchange", "from", "digest")
    return _table(headings, rows, (7,)) if rows else ""


def _comparison(reports: Sequence[Report]) -> str:
    headings, rows = comparison(reports)
    return _table(headings, rows)
