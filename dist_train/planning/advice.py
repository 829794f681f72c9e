"""What does not fit, or wastes time, and which key to change to what."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dist_train.planning.contents import ProblemPart
from dist_train.report.quantities import bytes_text, seconds_text

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.planning.contents import Plan, ReplicaPart


def problems_of(config: Config, plan: Plan) -> tuple[ProblemPart, ...]:
    """In the order in which they matter: what cannot work, then what costs time."""
    found = [problem for group in plan.groups for problem in (*_memory(config, group), *_deadlines(config, group))]
    found += _payload(config, plan)
    found += [problem for group in plan.groups for problem in _boundary(group)]
    found += _waiting(plan)
    found += _utilisation(config, plan)
    found += _crossover(plan)
    return tuple(sorted(found, key=lambda problem: problem.severity != "error"))


def _memory(config: Config, group: ReplicaPart) -> list[ProblemPart]:
    found = []
    for stage in group.stages:
        memory = stage.memory
        if stage.fits is not False or stage.limit_bytes is None:
            continue
        fixed = memory.device_bytes - memory.activations_bytes
        if fixed < stage.limit_bytes and memory.activations_bytes:
            tokens = config.inner.micro_batch_tokens or config.inner.batch_tokens
            share = (stage.limit_bytes - fixed) / memory.activations_bytes
            fitting = max(1, math.floor(tokens * share))
            if fitting >= config.data.sequence_tokens:
                remedy = f"set inner.micro_batch_tokens = {fitting} or less"
            else:
                remedy = f"set data.sequence_tokens and inner.micro_batch_tokens to {fitting} or less, or add stages"
        else:
            stages = math.ceil(len(group.stages) * memory.device_bytes / stage.limit_bytes)
            remedy = f"make it a pipeline of at least {stages} such machines"
        found.append(
            ProblemPart(
                severity="error",
                what=f"{stage.device} needs {bytes_text(memory.device_bytes)} and has {bytes_text(stage.limit_bytes)}",
                remedy=remedy,
            )
        )
    return found


def _deadlines(config: Config, group: ReplicaPart) -> list[ProblemPart]:
    exchange, phases, found = config.exchange, group.phases, list[ProblemPart]()
    fetch_s = phases.fetch_s + phases.decode_s
    if fetch_s > 0.8 * exchange.fetch_deadline_s:
        found.append(
            ProblemPart(
                severity="error",
                what=f"fetching takes {group.ids[0]} {seconds_text(fetch_s)}, and it gives up at 0.8 of "
                f"{seconds_text(exchange.fetch_deadline_s)}",
                remedy=f"set exchange.fetch_deadline_s = {math.ceil(fetch_s / 0.8 * 1.5)}",
            )
        )
    if (late_s := (group.waiting_s or 0.0)) > exchange.publish_deadline_s:
        found.append(
            ProblemPart(
                severity="error",
                what=f"{group.ids[0]} is done {seconds_text(late_s)} before the slowest, which is then left out",
                remedy=f"set exchange.publish_deadline_s = {math.ceil(late_s * 1.5)}, or leave the slow one out",
            )
        )
    return found


def _payload(config: Config, plan: Plan) -> list[ProblemPart]:
    most = config.exchange.most_payload_bytes
    if plan.payload.payload_bytes <= most:
        return []
    what = f"a contribution has {bytes_text(plan.payload.payload_bytes)}, and {bytes_text(most)} are allowed"
    remedy = f"set exchange.most_payload_bytes = {math.ceil(plan.payload.payload_bytes * 1.2)}"
    return [ProblemPart(severity="error", what=what, remedy=remedy)]


def _boundary(group: ReplicaPart) -> list[ProblemPart]:
    if not group.boundary_bound:
        return []
    now = "without compression" if group.rank_k is None else f"with rank_k = {group.rank_k}"
    slowest = max(group.links[2:], key=lambda link: link.seconds_per_round)
    what = f"the pipeline of {group.ids[0]} waits for the way {slowest.from_} - {slowest.to} {now}"
    return [ProblemPart(severity="advice", what=what, remedy="lower rank_k, or put the cut where the link is faster")]


def _waiting(plan: Plan) -> list[ProblemPart]:
    waiting = [g for g in plan.groups if g.waiting_s is not None and g.round_s and g.waiting_s > 0.25 * g.round_s]
    if not waiting:
        return []
    slowest = min(plan.groups, key=lambda g: g.waiting_s or 0.0)
    names = ", ".join(group.ids[0] for group in waiting[:3])
    what = f"{names} wait more than a quarter of each round for {slowest.ids[0]}"
    remedy = f"leave {slowest.ids[0]} out, or let the slow machines share a replica"
    return [ProblemPart(severity="advice", what=what, remedy=remedy)]


def _utilisation(config: Config, plan: Plan) -> list[ProblemPart]:
    wanted = config.plan.useful_utilisation
    if plan.utilisation is None or plan.utilisation >= wanted or wanted >= 1:
        return []
    slowest = min(plan.groups, key=lambda g: g.waiting_s or 0.0)
    compute_s, exchange_s = slowest.phases.compute_s or 0.0, slowest.phases.exchange_s
    options = []
    if config.outer.method == "ddp":
        options.append('outer.method = "sparseloco"')
    elif compute_s:
        steps = math.ceil(exchange_s * wanted / (1 - wanted) / (compute_s / config.steps_per_round))
        options.append(f"inner.steps = {steps} instead of {config.inner.steps}")
        if config.outer.method == "sparseloco" and config.sparseloco.k > 16:
            options.append(f"sparseloco.k = {config.sparseloco.k // 2}")
    what = f"computing fills {plan.utilisation:.0%} of the time; each round has {seconds_text(exchange_s)} of exchange"
    return [ProblemPart(severity="advice", what=what, remedy=" or ".join(options))] if options else []


def _crossover(plan: Plan) -> list[ProblemPart]:
    crossing = plan.crossover
    if crossing is None or crossing.replicas is None or plan.replicas < crossing.replicas:
        return []
    what = (
        f"each of {plan.replicas} replicas downloads {bytes_text(crossing.all_gather_bytes)} a round; "
        f"the sum of all would be {bytes_text(crossing.aggregate_bytes)}"
    )
    return [
        ProblemPart(severity="advice", what=what, remedy="lower sparseloco.k, or make fewer replicas, of more machines")
    ]
