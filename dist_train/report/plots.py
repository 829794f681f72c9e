"""The plots of a report as plain figures: traces and axes for plotly.js, values as they are in the report.

Names that members chose are escaped here, because plotly.js reads a little HTML in its texts. Colours of text and
grid are the page's, so that they follow its theme; only what is compared has a colour of its own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from dist_train.report.timeline import PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dist_train.report.contents import Report, SequencePart

Trace = dict[str, Any]

COLOURS = ("#3b7dd8", "#e07b39", "#2f9e6e", "#b0559d", "#c9a227", "#5aa9c9", "#8a6d5b", "#7b7fd1")
PHASE_COLOURS = {
    "compute": "#3b7dd8",
    "encode": "#c9a227",
    "publish": "#e07b39",
    "wait": "#9aa3ad",
    "fetch": "#2f9e6e",
    "decode": "#5aa9c9",
    "apply": "#b0559d",
    "validate": "#8a6d5b",
}
BASELINE_NAMES = {
    "ddp_fp32": "DDP, fp32",
    "ddp_bf16": "DDP, bf16",
    "diloco_fp32": "DiLoCo, fp32",
    "diloco_bf16": "DiLoCo, bf16",
    "sparseloco_reference_wire": "SparseLoCo, reference wire",
}
HEALTH_NOTES = {
    "error_feedback_norm": "Size of what was wanted and is not sent yet. It levels off in a healthy run.",
    "quantizer_error": "How far the sent values are from those they stand for, relative to these.",
    "off_subspace_share": "What a pipeline cuts off of the weights that all agreed on, because it binds its own to a"
    " subspace: their part outside it, relative to the whole.",
    "anchor_drift": "What a round added to the embedding outside a pipeline's subspace, relative to the embedding.",
    "reconstruction_error": "What is lost of the numbers that go from stage to stage, relative to what layers added.",
    "basis_version": "How often the subspace was fitted to what goes from stage to stage.",
    "snapshots_taken": "How often the replica began with others' parameters, to catch up.",
}
MOST_BARS = 60
"""Rounds that are drawn as bars; more are areas."""


@dataclass(frozen=True)
class Figure:
    """One plot: what plotly.js is given."""

    id: str
    title: str
    data: list[Trace]
    x: str = ""
    y: str = ""
    note: str = ""
    """What it shows, for who does not know its name."""
    layout: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the page."""
        axes: dict[str, Any] = {"xaxis": {"title": {"text": self.x}}, "yaxis": {"title": {"text": self.y}}}
        if self.x == "round" and self.data:
            axes["xaxis"]["dtick"] = max(1, -(-len(self.data[0]["x"]) // 10))  # there is no round 1.5
        merged = axes | self.layout
        merged = {key: axes[key] | value if key in axes else value for key, value in merged.items()}
        return {"id": self.id, "data": self.data, "layout": merged}


def figures(report: Report) -> list[Figure]:
    """All plots that the report has values for; the timeline is drawn by the page itself."""
    found = [*loss_figures([report])]
    if report.members:
        found += [_members(report), _matrix(report)]
    if report.rounds_detail:
        found.append(_bytes_by_round(report))
    if report.timeline:
        found.append(_seconds_by_round(report))
    if report.links:
        found.append(_links(report))
    if report.ratios:
        found.append(_baselines(report))
    found += [_steps(number, part) for number, part in enumerate(report.sequences)]
    if any(part.groups for part in report.sequences):
        found.append(_groups(report))
    return found + _health(report)


def loss_figures(reports: Sequence[Report]) -> list[Figure]:
    """Loss against tokens, bytes and seconds; several runs over each other."""
    shown = [report for report in reports if report.curve]
    if not shown:
        return []
    axes = (("tokens", "tokens"), ("sent_bytes", "bytes sent by all members"), ("elapsed_s", "seconds of open rounds"))
    return [
        Figure(
            id=f"loss-{key.replace('_', '-')}",
            title=f"Loss against {text.split()[0]}",
            data=[trace for n, report in enumerate(shown) for trace in _loss_traces(report, key, n, len(shown) > 1)],
            x=text,
            y="loss, nats a token",
            layout={"xaxis": {"type": "log", "dtick": 1, "exponentformat": "SI"}}
            if len(shown) > 1 and key == "sent_bytes"
            else {},
        )
        for key, text in axes
    ]


def _loss_traces(report: Report, key: str, number: int, is_compared: bool) -> list[Trace]:
    x = [getattr(point, key) for point in report.curve]
    colour = COLOURS[number % len(COLOURS)]
    prefix = f"{escape(report.run)} ({escape(report.method)}) " if is_compared else ""
    lines = [("train", [point.loss for point in report.curve], "dot" if is_compared else "solid", colour)]
    if any(point.validation_loss is not None for point in report.curve):
        second = colour if is_compared else COLOURS[1]
        lines.append(("validation", [point.validation_loss for point in report.curve], "solid", second))
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(x) <= MOST_BARS else "lines",
            "name": prefix + name,
            "x": x,
            "y": y,
            "connectgaps": True,
            "line": {"dash": dash, "color": color, "width": 2},
            "marker": {"size": 5},
        }
        for name, y, dash, color in lines
    ]


def _members(report: Report) -> Figure:
    members = sorted({part.member for part in report.members})
    kinds = list(dict.fromkeys(part.kind for part in report.traffic if part.sent_bytes or part.received_bytes))
    of = {(part.member, part.kind): (part.sent_bytes, part.received_bytes) for part in report.members}
    data = [
        {
            "type": "bar",
            "name": escape(kind.replace("_", " ")) + ("" if direction == "sent" else ", received"),
            "legendgroup": str(number),
            "showlegend": direction == "sent",
            "x": [escape(member) for member in members],
            "y": [of.get((member, kind), (0, 0))[n] for member in members],
            "offsetgroup": direction,
            "marker": {"color": COLOURS[number % len(COLOURS)] + ("" if direction == "sent" else "8c")},
        }
        for n, direction in enumerate(("sent", "received"))
        for number, kind in enumerate(kinds)
    ]
    # Two stacks a member stand side by side: offsetgroup parts them, and relative stacks within.
    layout = {"barmode": "stack", "xaxis": {"type": "category"}, "yaxis": {"exponentformat": "SI"}}
    note = "Left what it sent, right and paler what it received."
    return Figure("traffic-members", "Sent and received by each member", data, y="bytes", note=note, layout=layout)


def _matrix(report: Report) -> Figure:
    members = sorted({name for pair in report.matrix for name in (pair.from_, pair.to)})
    sent = {(pair.from_, pair.to): max(pair.sent_bytes, pair.received_bytes) for pair in report.matrix}
    names = [escape(member) for member in members]
    heat: Trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": [[sent.get((from_, to)) for to in members] for from_ in members],
        "colorscale": [[0.0, "#d6e4f7"], [0.5, "#5b93db"], [1.0, "#1d4580"]],
        "texttemplate": "%{z:.3s}" if len(members) <= 12 else "",
        "hovertemplate": "%{y} to %{x}: %{z:.4s}B<extra></extra>",
        "colorbar": {"title": {"text": "bytes"}, "exponentformat": "SI", "thickness": 12},
    }
    category: dict[str, Any] = {"type": "category"}
    layout = {"xaxis": category, "yaxis": category | {"autorange": "reversed"}}
    note = "From a replica to itself: between its own ranks or stages."
    return Figure("matrix", "Who sent whom how much", [heat], x="to", y="from", note=note, layout=layout)


def _bytes_by_round(report: Report) -> Figure:
    rounds = [detail.round for detail in report.rounds_detail]
    style: Trace = {"type": "scatter", "mode": "lines+markers" if len(rounds) <= MOST_BARS else "lines", "x": rounds}
    lines: tuple[tuple[str, list[int | None], str], ...] = (
        ("pseudo-gradients, counted", [d.pseudo_gradient_bytes for d in report.rounds_detail], "solid"),
        ("pseudo-gradients, predicted", [d.predicted_bytes for d in report.rounds_detail], "dash"),
        ("everything, counted", [d.sent_bytes for d in report.rounds_detail], "dot"),
    )
    data = [
        style | {"name": name, "y": y, "line": {"color": COLOURS[n], "dash": dash, "width": 2}}
        for n, (name, y, dash) in enumerate(lines)
        if any(value is not None for value in y)
    ]
    layout = {"yaxis": {"rangemode": "tozero", "exponentformat": "SI"}}
    return Figure("bytes-rounds", "Bytes of each round", data, x="round", y="bytes sent", layout=layout)


def _seconds_by_round(report: Report) -> Figure:
    """The mean over the replicas that told."""
    totals: dict[int, defaultdict[str, float]] = {}
    told: defaultdict[int, int] = defaultdict(int)
    for part in report.timeline:
        told[part.round] += 1
        by_phase = totals.setdefault(part.round, defaultdict(float))
        for phase, _, seconds in part.spans:
            by_phase[phase] += seconds
    rounds = list(totals)
    phases = [*PHASES, *sorted({phase for by_phase in totals.values() for phase in by_phase} - set(PHASES))]
    data = []
    for phase in phases:
        y = [totals[number][phase] / told[number] for number in rounds]
        if not any(y):
            continue
        colour = PHASE_COLOURS.get(phase, COLOURS[-1])
        area: Trace = {"type": "scatter", "mode": "none", "stackgroup": "one", "fillcolor": colour}
        bar: Trace = {"type": "bar", "marker": {"color": colour}}
        data.append((bar if len(rounds) <= MOST_BARS else area) | {"name": escape(phase), "x": rounds, "y": y})
    return Figure(
        "seconds-rounds", "Where the seconds of each round went", data, "round", "s, mean", layout={"barmode": "stack"}
    )


def _steps(number: int, part: SequencePart) -> Figure:
    """Predicted beside measured seconds of the steps of one replica, and what planning took."""
    lines = (
        ("measured", COLOURS[0], "solid", [point.measured_s for point in part.curve]),
        ("predicted", COLOURS[1], "dash", [point.predicted_s for point in part.curve]),
        ("planning, beside the step before", COLOURS[2], "dot", [point.planning_s for point in part.curve]),
        ("waiting for the plan", COLOURS[3], "dot", [point.waiting_s for point in part.curve]),
    )
    data: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(part.curve) <= MOST_BARS else "lines",
            "name": name,
            "x": [point.step for point in part.curve],
            "y": y,
            "line": {"color": colour, "dash": dash, "width": 2},
            "marker": {"size": 5},
        }
        for name, colour, dash, y in lines
    ]
    layout = {"yaxis": {"rangemode": "tozero"}}
    title = f"Seconds of each step of {escape(part.replica)}"
    return Figure(f"sequence-steps-{number}", title, data, x="inner step", y="s", layout=layout)


def _groups(report: Report) -> Figure:
    degrees = sorted({degree for part in report.sequences for degree in part.groups})
    data: list[Trace] = [
        {
            "type": "bar",
            "name": f"{degree} rank{'s' if degree > 1 else ''}",
            "x": [escape(part.replica) for part in report.sequences],
            "y": [part.groups.get(degree, 0) / max(1, sum(part.groups.values())) for part in report.sequences],
            "marker": {"color": COLOURS[number % len(COLOURS)]},
        }
        for number, degree in enumerate(degrees)
    ]
    layout = {"barmode": "stack", "xaxis": {"type": "category"}, "yaxis": {"tickformat": ".0%"}, "bargap": 0.6}
    return Figure("sequence-groups", "How many ranks shared a document", data, y="share of groups", layout=layout)


def is_of_sequences(report: Report, figure: str) -> bool:
    """Whether a figure of health is shown with the sequence plans already."""
    return bool(report.sequences) and figure.startswith("sequence_")


def _links(report: Report) -> Figure:
    names = [f"{escape(link.from_)} → {escape(link.to)}" for link in report.links]
    goodput = [link.goodput_bits_per_second for link in report.links]
    limits = [link.limit_bits_per_second for link in report.links]
    data: list[Trace] = [{"type": "bar", "name": "goodput", "x": names, "y": goodput, "marker": {"color": COLOURS[0]}}]
    if any(limits):
        line = {"symbol": "line-ew", "size": 22, "line": {"width": 3, "color": COLOURS[1]}, "color": COLOURS[1]}
        data.append({"type": "scatter", "mode": "markers", "name": "limit", "x": names, "y": limits, "marker": line})
    layout = {"xaxis": {"type": "category"}, "yaxis": {"exponentformat": "SI"}}
    return Figure("links", "Goodput of each link", data, y="bit/s", layout=layout)


def _baselines(report: Report) -> Figure:
    compared = report.baselines.model_dump()
    named = [(name, compared[f"{key}_bytes"]) for key, name in BASELINE_NAMES.items() if compared[f"{key}_bytes"]]
    ours = sum(part.sent_bytes for part in report.traffic if part.kind == "pseudo_gradient")
    rows: list[tuple[str, int]] = [*named, (f"this run ({escape(report.method)})", ours)][::-1]
    bar: Trace = {
        "type": "bar",
        "orientation": "h",
        "y": [name for name, _ in rows],
        "x": [num_bytes for _, num_bytes in rows],
        "marker": {"color": [COLOURS[1], *[COLOURS[0]] * (len(rows) - 1)]},
        "hovertemplate": "%{y}: %{x:.4s}B<extra></extra>",
    }
    layout = {"xaxis": {"type": "log", "exponentformat": "SI", "dtick": 1}}
    return Figure("baselines", "The same training by other means", [bar], x="bytes (log)", layout=layout)


def _health(report: Report) -> list[Figure]:
    told = {name for part in report.health for name in part.figures}
    names = sorted(name for name in told if not is_of_sequences(report, name))
    replicas = sorted({part.replica for part in report.health})
    found = []
    for n, name in enumerate(names):
        data = []
        for number, replica in enumerate(replicas):
            parts = [part for part in report.health if part.replica == replica and name in part.figures]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if len(parts) <= MOST_BARS else "lines",
                    "name": escape(replica),
                    "x": [part.round for part in parts],
                    "y": [part.figures[name] for part in parts],
                    "line": {"color": COLOURS[number % len(COLOURS)], "width": 2},
                }
            )
        title, layout = escape(name.replace("_", " ")).capitalize(), {"showlegend": True}
        found.append(Figure(f"health-{n}", title, data, x="round", note=HEALTH_NOTES.get(name, ""), layout=layout))
    return found
