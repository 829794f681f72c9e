"""A report for the terminal: at most 100 columns, nothing measured here, only said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

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
from dist_train.report.traffic import PSEUDO_GRADIENT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dist_train.report.contents import Report, RoundPart

LAST_ROUNDS = 8
MOST_REPLICAS = 24
WIDEST_CONTRIBUTORS = 24
STATUS_STYLES = {"complete": "green", "running": "cyan", "interrupted": "yellow"}

INSIDE_A_MACHINE = ("sequence_all_to_all", "intra_replica")
"""Kinds that need no internet link: the ranks of a replica are on one machine, but for a few bytes of a pipeline's."""


def render_terminal(report: Report) -> RenderableType:
    """The whole report, top to bottom in the order in which questions come."""
    blank = Text("")
    parts: list[RenderableType] = [_headline(report)]
    if report.traffic:
        parts += [blank, _traffic(report)]
    if report.pseudo_gradient.bits_per_parameter is not None:
        parts += [_pseudo_gradient(report)]
    if baselines := _baselines(report):
        parts += [blank, baselines]
    if any(replica.phase_s for replica in report.replicas):
        parts += [blank, _replicas(report)]
    if report.sequences:
        parts += [blank, _sequences(report)]
    if any(link.limit_bits_per_second for link in report.links):
        parts += [blank, _links(report)]
    if report.faults:
        parts += [blank, _faults(report)]
    if report.rounds_detail:
        parts += [blank, _rounds(report)]
    return Group(*parts)


def _headline(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("run", Text.assemble((report.run, "bold"), "  ", (report.status, STATUS_STYLES[report.status])))
    grid.add_row("model", f"{report.model.name or UNKNOWN}, {count_text(report.model.parameters)} parameters")
    grid.add_row("method", f"{report.method}, {len(report.replicas)} replicas ({_share_of_rounds(report)})")
    grid.add_row("rounds", f"{report.rounds} of {report.rounds_planned}, {count_text(report.tokens)} tokens")
    grid.add_row("loss", _loss(report))
    if report.seconds == "simulated":
        grid.add_row("seconds", Text("simulated: the replicas were virtual, and nobody waited", "yellow"))
    grid.add_row("computing", UNKNOWN if report.utilisation is None else f"{report.utilisation:.1%} of the time")
    grid.add_row("agreement", _agreement(report))
    return grid


def _share_of_rounds(report: Report) -> str:
    shown = ", ".join(f"{replica.id} {replica.rounds_committed}" for replica in report.replicas[:8])
    return f"rounds: {shown}" + (", …" if len(report.replicas) > 8 else "")


def _loss(report: Report) -> str:
    loss = report.loss
    text = f"{loss_text(loss.train_first)} → {loss_text(loss.train_last)}"
    if loss.validation_last is not None:
        text += f"   validation {loss_text(loss.validation_first)} → {loss_text(loss.validation_last)}"
    if loss.unigram_entropy is not None:
        text += f"   (guessing by token frequency: {loss_text(loss.unigram_entropy)})"
    return text


def _agreement(report: Report) -> Text:
    if not report.rounds_detail:
        return Text("no round was committed", "yellow")
    disagreed = [str(detail.round) for detail in report.rounds_detail if not detail.agreed]
    if disagreed:
        return Text(f"digests DIFFERED in round {', '.join(disagreed)}", "bold red")
    return Text(f"same digest everywhere in all {report.rounds} rounds", "green")


def _traffic(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Traffic", title_justify="left", title_style="bold")
    table.add_column("kind")
    for heading in ("sent", "received", "predicted", "sent / predicted"):
        table.add_column(heading, justify="right")
    for part in report.traffic:
        if part.sent_bytes or part.received_bytes or part.predicted_bytes:
            shown = (part.sent_bytes, part.received_bytes, part.predicted_bytes)
            share = f"{part.sent_bytes / part.predicted_bytes:.1%}" if part.predicted_bytes else UNKNOWN
            table.add_row(part.kind.replace("_", " "), *map(bytes_text, shown), share)
    table.add_section()
    inside = [part for part in report.traffic if part.kind in INSIDE_A_MACHINE]
    for name, parts in (
        ("between machines", [p for p in report.traffic if p not in inside]),
        ("between ranks", inside),
    ):
        totals = (sum(part.sent_bytes for part in parts), sum(part.received_bytes for part in parts))
        if any(totals):
            table.add_row(name, *map(bytes_text, totals), "", "")
    return table


def _pseudo_gradient(report: Report) -> Text:
    part = report.pseudo_gradient
    facts = [f"{part.bits_per_parameter:.3f} bits a parameter"]
    if part.bits_per_value is not None and part.density is not None:
        facts.append(f"{part.bits_per_value:.2f} bits a sent value")
        facts.append(f"{part.density:.2%} of the values sent")
    return Text.assemble("pseudo-gradient: ", (ratio_text(part.ratio_vs_fp32), "bold"), " smaller than fp32  ") + Text(
        f"({', '.join(facts)})", "dim"
    )


def _baselines(report: Report) -> Table | None:
    named = (
        ("DDP, fp32", report.baselines.ddp_fp32_bytes),
        ("DDP, bf16", report.baselines.ddp_bf16_bytes),
        ("DiLoCo, fp32", report.baselines.diloco_fp32_bytes),
        ("DiLoCo, bf16", report.baselines.diloco_bf16_bytes),
        ("SparseLoCo, reference wire", report.baselines.sparseloco_reference_wire_bytes),
    )
    if not any(num_bytes for _, num_bytes in named):
        return None
    ours = next((part.sent_bytes for part in report.traffic if part.kind == PSEUDO_GRADIENT), None)
    title = "The same training by other means"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column("method")
    table.add_column("would have sent", justify="right")
    table.add_column("this run's pseudo-gradients")
    for name, num_bytes in named:
        if num_bytes is not None:
            table.add_row(name, bytes_text(num_bytes), _comparison(num_bytes, ours))
    return table


def _comparison(baseline_bytes: int, sent_bytes: int | None) -> str:
    if not sent_bytes:
        return UNKNOWN
    if baseline_bytes >= sent_bytes:
        return f"{ratio_text(baseline_bytes / sent_bytes)} less"
    return f"{ratio_text(sent_bytes / max(baseline_bytes, 1))} more"


def _replicas(report: Report) -> Table:
    """Who computes and who waits: the slow machine is the one that others wait for and that waits for nobody."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Replicas", title_justify="left", title_style="bold")
    table.add_column("replica", overflow="fold")
    for heading in ("sent", "received", "computing", "waiting", "fetching", "utilisation"):
        table.add_column(heading, justify="right")
    for replica in report.replicas[:MOST_REPLICAS]:
        seconds = (seconds_text(replica.phase_s.get(phase)) for phase in ("compute", "wait", "fetch"))
        share = UNKNOWN if replica.utilisation is None else f"{replica.utilisation:.1%}"
        traffic = (bytes_text(replica.sent_bytes), bytes_text(replica.received_bytes))
        table.add_row(replica.id, *traffic, *seconds, share)
    if (left := len(report.replicas) - MOST_REPLICAS) > 0:
        table.add_row(f"… and {left} more")
    return table


def _sequences(report: Report) -> Table:
    title = "Sequence plans, means of a step"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column("replica", overflow="fold")
    for heading in ("steps", "predicted", "measured", "gap", "planning", "waiting", "late"):
        table.add_column(heading, justify="right")
    table.add_column("groups of ranks", overflow="fold")
    for part in report.sequences:
        gap = UNKNOWN if part.gap is None else f"{part.gap:.1%}"
        seconds = (part.predicted_s, part.measured_s, part.planning_s, part.waiting_s)
        predicted, measured, planning, waiting = map(short_seconds_text, seconds)
        cells = (str(part.steps), predicted, measured, gap, planning, waiting, str(part.late))
        table.add_row(part.replica, *cells, groups_text(part.groups))
    return table


def _links(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Links", title_justify="left", title_style="bold")
    table.add_column("from → to", overflow="fold")
    for heading in ("limit", "goodput", "latency", "busy", "predicted", "enforced by"):
        table.add_column(heading, justify="right")
    for link in report.links[:MOST_REPLICAS]:
        rates = (rate_text(link.limit_bits_per_second), rate_text(link.goodput_bits_per_second))
        seconds = (seconds_text(s) for s in (link.latency_s, link.busy_s, link.predicted_s))
        table.add_row(f"{link.from_} → {link.to}", *rates, *seconds, link.enforced_by)
    return table


def _faults(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Faults", title_justify="left", title_style="bold")
    table.add_column("round", justify="right")
    table.add_column("without", overflow="fold")
    table.add_column("why", overflow="fold")
    for fault in report.faults[-LAST_ROUNDS:]:
        table.add_row(str(fault.round), Text(fault.replica), Text(fault.reason))
    return table


def _rounds(report: Report) -> Table:
    title = "Last rounds" if report.rounds > LAST_ROUNDS else "Rounds"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading in ("round", "loss", "validation", "tokens", "compute", "exchange"):
        table.add_column(heading, justify="right")
    table.add_column("from", max_width=WIDEST_CONTRIBUTORS, no_wrap=True, overflow="ellipsis")
    table.add_column("digest")
    for detail in report.rounds_detail[-LAST_ROUNDS:]:
        table.add_row(*_round_cells(detail))
    return table


def _round_cells(detail: RoundPart) -> tuple[str | Text, ...]:
    absent = f" (not {', '.join(detail.absent)})" if detail.absent else ""
    return (
        str(detail.round),
        loss_text(detail.loss),
        loss_text(detail.validation_loss),
        count_text(detail.tokens),
        seconds_text(detail.compute_s),
        seconds_text(detail.exchange_s),
        ", ".join(detail.contributors) + absent,
        Text(detail.theta_digest[:8], "" if detail.agreed else "bold red"),
    )
