"""The plan of a run: bytes, memory and seconds of every replica and link, from closed forms alone.

    assumptions    what the config, the command line and a measurement say of machines and links
    payload        bytes of one contribution, and of the same training by other methods
    replica_parts  memory, links and seconds of each group of replicas that are alike

Nothing here loops over replicas: they are counted in groups that are alike, so that one or ten thousand cost the same.
Bytes come from where the report has its predictions: the codec's `num_bytes`, `comms.payloads.stream_bytes`,
`report.traffic.predicted_exchange_bytes`, and `baselines`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from comms.payloads import stream_bytes
from dist_train.planning.advice import problems_of
from dist_train.planning.architecture import architecture_of
from dist_train.planning.assumptions import NOTHING_ASSUMED, Assumptions, calibrated, calibration_of, with_line
from dist_train.planning.contents import CostPart, ModelPart, Plan, ReplicaPart, TrafficPart
from dist_train.planning.machines import crew_of
from dist_train.planning.payload import baselines_part, crossover_part, payload_of, payload_part
from dist_train.planning.replica_parts import (
    PlannedRun,
    boundary_bytes,
    exchange_of,
    in_round,
    replica_part,
    utilisation_of,
)
from dist_train.report.traffic import PSEUDO_GRADIENT, predicted_exchange_bytes

if TYPE_CHECKING:
    from dist_train.config import Config
    from dist_train.planning.architecture import Architecture
    from dist_train.planning.machines import Crew, Group

DAY_S = 86_400


def predict(config: Config, assumptions: Assumptions = NOTHING_ASSUMED) -> Plan:
    """The plan of `config`. ConfigError, one line, where machines cannot hold the model or names do not fit."""
    config = with_line(config, assumptions)
    architecture = architecture_of(config.model)
    work, default = calibrated(config, architecture, assumptions)
    crew = crew_of(config, work, default, assumptions.replicas or config.plan.replicas)
    bits_per_value = assumptions.bits_per_value or config.plan.bits_per_value
    payload = payload_of(config, architecture, bits_per_value)
    count = sum(group.count for group in crew.groups)
    exchange = exchange_of(config, architecture, crew, payload, count)
    run = PlannedRun(config, architecture, work, payload, exchange)
    groups = [replica_part(run, group) for group in crew.groups]
    own_s = [group.phases.round_s for group in groups]
    round_s = None if None in own_s else max(s for s in own_s if s is not None)
    groups = [in_round(config, group, own, round_s) for group, own in zip(groups, own_s, strict=True)]
    tokens = count * config.steps_per_round * config.inner.batch_tokens
    plan = Plan(
        run=config.run.name,
        method=config.outer.method,
        config_digest=config.digest(),
        model=ModelPart(
            name=_model_name(config, architecture),
            parameters=architecture.parameters,
            flops_per_token=architecture.flops_per_token(config.data.sequence_tokens),
        ),
        replicas=count,
        rounds=config.rounds,
        tokens_per_round=tokens,
        calibration=calibration_of(crew, assumptions),
        payload=payload_part(config, architecture, payload, bits_per_value),
        traffic=_traffic(run, crew.groups),
        baselines=baselines_part(config, architecture, payload, count),
        groups=tuple(groups),
        idle_devices=crew.idle,
        placed=crew.placed,
        round_s=round_s,
        run_s=None if round_s is None else round_s * config.rounds,
        utilisation=utilisation_of(groups, count),
        tokens_per_s=tokens / round_s if round_s else None,
        tokens_per_day=tokens / round_s * DAY_S if round_s else None,
        crossover=crossover_part(config, architecture, payload, count),
        cost=_cost(config, crew, groups, tokens, round_s),
        problems=(),
    )
    return plan.model_copy(update={"problems": problems_of(config, plan)})


def _model_name(config: Config, architecture: Architecture) -> str:
    if config.model.path is not None:
        return Path(config.model.path).name
    return f"llama-{architecture.hidden_size}x{architecture.layers}"


def _traffic(run: PlannedRun, groups: tuple[Group, ...]) -> tuple[TrafficPart, ...]:
    config, work, exchange, payload = run.config, run.work, run.exchange, run.payload
    exchanged = predicted_exchange_bytes([exchange.replicas], payload.sizes_bytes, config.exchange.route, stream_bytes)
    embed_bytes = stream_bytes(payload.sizes_bytes[0], "get")
    crossing = 0
    for group in groups:
        boundaries = group.count * (len(group.machines) - 1)
        crossing += boundaries * boundary_bytes(config, work, group)
        exchanged += boundaries * (exchange.replicas - 1) * embed_bytes  # which every stage needs
    kinds = ((PSEUDO_GRADIENT, exchanged), ("activation", crossing), ("activation_gradient", crossing))
    return tuple(TrafficPart(kind=kind, sent_bytes=num_bytes) for kind, num_bytes in kinds)


def _cost(config: Config, crew: Crew, groups: list[ReplicaPart], tokens: int, round_s: float | None) -> CostPart | None:
    prices = config.prices
    if round_s is None or not (prices.device_hour or prices.sent_gigabyte):
        return None
    machines = sum(group.count * len(group.machines) for group in crew.groups)
    hours = round_s * config.rounds / 3600
    sent = config.rounds * sum(group.count * group.sent_bytes for group in groups)
    devices, traffic = machines * hours * prices.device_hour, sent / 1e9 * prices.sent_gigabyte
    return CostPart(
        currency=prices.currency,
        devices=devices,
        traffic=traffic,
        total=devices + traffic,
        per_billion_tokens=(devices + traffic) / (tokens * config.rounds / 1e9),
    )
