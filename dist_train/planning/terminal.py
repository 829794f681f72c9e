"""A plan for the terminal: at most 100 columns, nothing calculated here, only said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dist_train.report.quantities import UNKNOWN, bytes_text, count_text, ratio_text, seconds_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dist_train.planning.contents import LinkPart, Plan, ReplicaPart, StagePart

MOST_ROWS = 24


def render_terminal(plan: Plan) -> RenderableType:
    """The whole plan, top to bottom in the order in which questions come."""
    blank = Text("")
    parts: list[RenderableType] = [_headline(plan), blank, _problems(plan)]
    parts += [blank, _bytes(plan), blank, _seconds(plan), blank, _memory(plan), blank, _links(plan)]
    return Group(*parts)


def _headline(plan: Plan) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("plan", Text(plan.run, "bold"))
    grid.add_row("model", f"{plan.model.name}, {count_text(plan.model.parameters)} parameters")
    grid.add_row("method", f"{plan.method}, {count_text(plan.replicas)} replicas, {plan.rounds} rounds")
    tokens = f"{count_text(plan.tokens_per_round * plan.rounds)} in all, {count_text(plan.tokens_per_round)} a round"
    if plan.tokens_per_day is not None:
        tokens += f", {count_text(plan.tokens_per_s)} a second, {count_text(plan.tokens_per_day)} a day"
    grid.add_row("tokens", tokens)
    grid.add_row("time", f"{seconds_text(plan.run_s)}, {seconds_text(plan.round_s)} a round")
    computing = UNKNOWN if plan.utilisation is None else f"{plan.utilisation:.1%} of the time"
    grid.add_row("computing", computing)
    grid.add_row("figures", Text(plan.calibration))
    if plan.cost is not None:
        cost = plan.cost
        text = f"{cost.total:,.0f} {cost.currency} ({cost.devices:,.0f} machines, {cost.traffic:,.0f} traffic)"
        grid.add_row("cost", f"{text}, {cost.per_billion_tokens:,.2f} for 10^9 tokens")
    if plan.idle_devices:
        grid.add_row("not used", ", ".join(plan.idle_devices))
    return grid


def _problems(plan: Plan) -> RenderableType:
    if not plan.problems:
        return Text("Everything fits.", "green")
    lines = []
    for problem in plan.problems:
        style = "bold red" if problem.severity == "error" else "yellow"
        word = "does not fit" if problem.severity == "error" else "advice"
        lines.append(Text.assemble((f"{word}: ", style), problem.what, (f"\n    → {problem.remedy}", "bold")))
    return Group(*lines)


def _table(title: str, *headings: str, left: int = 1) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left else "right", overflow="fold")
    return table


def _bytes(plan: Plan) -> Table:
    payload, base = plan.payload, plan.baselines
    table = _table("Bytes", "", "one replica", "all, a round", "bits a value", "against fp32")
    assumed = payload.assumed_bits_per_value
    exchanged = next(t.sent_bytes for t in plan.traffic if t.kind == "pseudo_gradient")
    name = "our codec" if assumed is None else f"with {assumed:g} bits a value"
    table.add_row(
        Text(f"payload, {name}", "bold"), bytes_text(payload.payload_bytes), bytes_text(exchanged),
        f"{payload.bits_per_value:.2f}", ratio_text(payload.ratio_vs_fp32),
    )  # fmt: skip
    beside = [("in the first round", payload.first_round_bytes)]
    if assumed is not None:
        beside = [("our codec", payload.codec_bytes), ("our codec, first round", payload.first_round_bytes)]
    if payload.published_bytes is not None and assumed is None:
        beside.append(("as published, 12 + 2 bits", payload.published_bytes))
    for text, num_bytes in beside:
        table.add_row(
            text, bytes_text(num_bytes), "", f"{8 * num_bytes / payload.values:.2f}",
            ratio_text(4 * plan.model.parameters / num_bytes),
        )  # fmt: skip
    for part in plan.traffic[1:]:
        if part.sent_bytes:
            table.add_row(part.kind.replace("_", " "), "", bytes_text(part.sent_bytes))
    table.add_section()
    others = (
        ("DDP, fp32", base.ddp_fp32_bytes),
        ("DDP, bf16", base.ddp_bf16_bytes),
        ("DiLoCo, fp32", base.diloco_fp32_bytes),
        ("SparseLoCo, reference wire", base.sparseloco_reference_wire_bytes),
    )
    for text, others_bytes in others:
        if others_bytes:
            table.add_row(f"{text} would send", "", bytes_text(others_bytes))
    if plan.crossover is not None:
        crossing = plan.crossover
        table.caption = (
            f"A relay that adds up would send each replica {bytes_text(crossing.aggregate_bytes)} instead of "
            f"{bytes_text(crossing.all_gather_bytes)} a round;\nless from {crossing.replicas or UNKNOWN} replicas on."
        )
        table.caption_justify = "left"
    return table


def _seconds(plan: Plan) -> Table:
    table = _table(
        "Seconds of a round", "replica", "compute", "encode", "publish", "fetch", "decode", "apply", "wait", "computing"
    )
    for group in plan.groups[:MOST_ROWS]:
        phases = group.phases
        phase_s = (phases.compute_s, phases.encode_s, phases.publish_s, phases.fetch_s, phases.decode_s, phases.apply_s)
        share = UNKNOWN if group.utilisation is None else f"{group.utilisation:.1%}"
        table.add_row(_name(group), *(seconds_text(s) for s in (*phase_s, group.waiting_s)), share)
    return table


def _name(group: ReplicaPart) -> str:
    if group.count == 1:
        return group.ids[0]
    return f"{group.count} like {group.ids[0]}"


def _memory(plan: Plan) -> Table:
    table = _table(
        "Memory", "replica", "machine", "layers", "weights", "optim.", "activ.", "anchor", "needs", "has",
        "host", left=2,
    )  # fmt: skip
    for group in plan.groups[:MOST_ROWS]:
        for i, stage in enumerate(group.stages):
            table.add_row(_name(group) if i == 0 else "", *_memory_cells(stage))
        if group.kind == "pipeline":
            rank = "not compressed" if group.rank_k is None else f"rank_k = {group.rank_k}"
            table.add_row("", Text(f"boundaries: {rank}", "dim"))
    return table


def _memory_cells(stage: StagePart) -> tuple[str | Text, ...]:
    memory = stage.memory
    needs = Text(bytes_text(memory.device_bytes), "bold red" if stage.fits is False else "")
    layers = f"{stage.layers} ({stage.first_layer}-{stage.first_layer + stage.layers - 1})"
    held = (memory.parameters_bytes, memory.optimizer_bytes, memory.activations_bytes, memory.anchor_bytes)
    return (stage.device, layers, *map(bytes_text, held), needs, bytes_text(stage.limit_bytes),
            bytes_text(memory.host_bytes))  # fmt: skip


def _links(plan: Plan) -> Table:
    table = _table("Links, a round", "from", "to", "bytes", "limit", "latency", "seconds", left=2)
    rows = [link for group in plan.groups for link in group.links]
    for link in rows[:MOST_ROWS]:
        table.add_row(*_link_cells(link))
    if len(rows) > MOST_ROWS:
        table.add_row(f"… {len(rows) - MOST_ROWS} more, see --json")
    return table


def _link_cells(link: LinkPart) -> tuple[str, ...]:
    limit = "none" if link.limit_bits_per_second is None else f"{count_text(link.limit_bits_per_second)}bit/s"
    return (link.from_, link.to, bytes_text(link.bytes_per_round), limit, f"{1000 * link.latency_s:.0f} ms",
            seconds_text(link.seconds_per_round))  # fmt: skip
