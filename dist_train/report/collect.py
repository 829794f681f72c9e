"""From the files of a run directory to a `Report`: also of a run that is going on, or died in its first round."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dist_train import baselines
from dist_train.config import Config, ConfigError, load
from dist_train.report.contents import (
    BaselinesPart,
    LossPart,
    ModelPart,
    PseudoGradientPart,
    ReplicaPart,
    Report,
    RoundPart,
    Status,
)
from dist_train.report.facts import RunFacts, read_facts
from dist_train.report.links import collect_links
from dist_train.report.metrics import COMPUTE_PHASE, EXCHANGE_PHASES, RoundRow, read_rounds
from dist_train.report.traffic import predicted_exchange_bytes, read_ledgers, traffic_parts

if TYPE_CHECKING:
    from dist_train.run_directory import RunDirectory

Rows = tuple[RoundRow, ...]


def collect(directory: RunDirectory, *, is_running: bool = False) -> Report:
    """The report of the run in `directory`; the caller knows whether it is running. ConfigError where no run is."""
    if not directory.config.is_file():
        raise ConfigError(f"{directory.path}: no run is kept here (no {directory.config.name} in it)")
    config = load(directory.config)
    rows = read_rounds(directory.metrics)
    facts = read_facts(directory.facts)
    return Report(
        run=config.run.name,
        status=_status(config, rows, is_running),
        rounds=len(rows),
        rounds_planned=config.rounds,
        config_digest=config.digest(),
        method=config.outer.method,
        model=ModelPart(name=facts.model.name, parameters=facts.model.parameters),
        replicas=_replicas(config, rows),
        rounds_detail=tuple(_round(row) for row in rows),
        traffic=traffic_parts(read_ledgers(directory.ledgers), _predicted_bytes(config, rows, facts)),
        pseudo_gradient=_pseudo_gradient(rows, facts),
        links=collect_links(directory),
        baselines=_baselines(config, rows, facts),
        loss=_loss(rows, facts),
        tokens=sum(row.total_tokens for row in rows),
        utilisation=_utilisation(rows),
    )


def _status(config: Config, rows: Rows, is_running: bool) -> Status:
    if is_running:
        return "running"
    return "complete" if rows and rows[-1].round >= config.rounds else "interrupted"


def _replicas(config: Config, rows: Rows) -> tuple[ReplicaPart, ...]:
    tokens, committed = Counter[str](), Counter[str]()
    for row in rows:
        tokens.update(row.tokens)
        committed.update(row.contributors)
    named = [replica.id for replica in config.replica]
    return tuple(
        ReplicaPart(
            id=replica,
            kind="dense",
            ranks=1,
            stages=1,
            rank_k=None,
            tokens=tokens[replica],
            rounds_committed=committed[replica],
        )
        for replica in (*named, *sorted(committed.keys() - set(named)))
    )


def _round(row: RoundRow) -> RoundPart:
    return RoundPart(
        round=row.round,
        contributors=row.contributors,
        theta_digest=row.theta_digest,
        loss=row.loss,
        compute_s=row.mean_phase_s(frozenset({COMPUTE_PHASE})),
        exchange_s=row.mean_phase_s(EXCHANGE_PHASES),
        validation_loss=row.validation_loss,
        tokens=row.total_tokens,
        agreed=row.agreed,
        absent={absence.replica: absence.reason for absence in row.absent},
    )


def _contributors(rows: Rows) -> list[int]:
    return [len(row.contributors) for row in rows]


def _predicted_bytes(config: Config, rows: Rows, facts: RunFacts) -> int | None:
    by_round = [(len(row.contributors), facts.predicted_payloads_bytes(row.round)) for row in rows]
    if facts.predicted_payloads_bytes(1) is None:
        return None
    from comms.payloads import stream_bytes  # noqa: PLC0415 - brings in gRPC, which few reports wait for

    return sum(
        predicted_exchange_bytes([contributors], sizes or (), config.exchange.route, stream_bytes)
        for contributors, sizes in by_round
    )


def _pseudo_gradient(rows: Rows, facts: RunFacts) -> PseudoGradientPart:
    """What a contribution took, on average over all of them, from the payload bytes that were counted."""
    contributions = sum(len(row.payload_bytes) for row in rows)
    payload_bits = 8 * sum(row.total_payload_bytes for row in rows)
    values, parameters = facts.sent_values, facts.exchanged_parameters
    bits_per_parameter = payload_bits / (contributions * parameters) if contributions and parameters else None
    return PseudoGradientPart(
        density=values / parameters if values is not None and parameters else None,
        bits_per_value=payload_bits / (contributions * values) if contributions and values else None,
        bits_per_parameter=bits_per_parameter,
        ratio_vs_fp32=32 / bits_per_parameter if bits_per_parameter else None,
    )


def _baselines(config: Config, rows: Rows, facts: RunFacts) -> BaselinesPart:
    contributors, steps, parameters = _contributors(rows), config.steps_per_round, facts.exchanged_parameters
    # A ddp run exchanges after each inner step; DiLoCo would have done so after the last of every `inner.steps`.
    every = config.inner.steps // steps
    kept_values = facts.sent_values if config.outer.method == "sparseloco" else None
    reference = None if kept_values is None else baselines.sparseloco_reference_wire_bytes(contributors, kept_values)
    if parameters is None:
        return BaselinesPart(
            ddp_fp32_bytes=None,
            ddp_bf16_bytes=None,
            diloco_fp32_bytes=None,
            sparseloco_reference_wire_bytes=reference,
        )
    return BaselinesPart(
        ddp_fp32_bytes=baselines.ddp_bytes(contributors, steps, parameters, baselines.FP32_BYTES),
        ddp_bf16_bytes=baselines.ddp_bytes(contributors, steps, parameters, baselines.BF16_BYTES),
        diloco_fp32_bytes=baselines.diloco_fp32_bytes(contributors[every - 1 :: every], parameters),
        sparseloco_reference_wire_bytes=reference,
    )


def _loss(rows: Rows, facts: RunFacts) -> LossPart:
    train = [row.loss for row in rows]
    validation = [row.validation_loss for row in rows if row.validation_loss is not None]
    return LossPart(
        train_first=train[0] if train else None,
        train_last=train[-1] if train else None,
        validation_first=validation[0] if validation else None,
        validation_last=validation[-1] if validation else None,
        unigram_entropy=facts.unigram_entropy_nats,
    )


def _utilisation(rows: Rows) -> float | None:
    accounts = [by_phase for row in rows for by_phase in row.phase_s.values()]
    total_s = sum(sum(by_phase.values()) for by_phase in accounts)
    return sum(by_phase.get(COMPUTE_PHASE, 0.0) for by_phase in accounts) / total_s if total_s else None
