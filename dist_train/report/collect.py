"""From the files of a run directory to a `Report`: also of a run that is going on, or died in its first round."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from dist_train import baselines
from dist_train.config import Config, load_kept
from dist_train.report.contents import (
    BaselinesPart,
    FaultPart,
    HealthPart,
    LossPart,
    ModelPart,
    PointPart,
    PseudoGradientPart,
    ReplicaPart,
    Report,
    RoundPart,
    Status,
)
from dist_train.report.facts import ModelFacts, RunFacts, read_facts
from dist_train.report.ledgers import read_sums
from dist_train.report.links import Carriage, are_seconds_simulated, link_parts
from dist_train.report.metrics import COMPUTE_PHASE, EXCHANGE_PHASES, RoundRow, read_rounds
from dist_train.report.predicted import Predictor
from dist_train.report.sequences import sequence_parts
from dist_train.report.timeline import timeline
from dist_train.report.traffic import (
    PSEUDO_GRADIENT,
    RECEIVED,
    SENT,
    bytes_by,
    matrix,
    member_parts,
    traffic_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from dist_train.config import ReplicaConfig
    from dist_train.run_directory import RunDirectory


Rows = tuple[RoundRow, ...]


def collect(directory: RunDirectory, *, is_running: bool = False) -> Report:
    """The report of the run in `directory`; the caller knows whether it is running. ConfigError where no run is."""
    config = load_kept(directory.path)
    rows = read_rounds(directory.metrics)
    facts = read_facts(directory.facts)
    carriage = Carriage(directory.ledgers)
    sums = read_sums(directory.ledgers, carriage.take)
    predictor = Predictor(config, facts)
    details = _rounds(rows, sums, predictor)
    sent_bytes = bytes_by(sums, SENT, "kind")[PSEUDO_GRADIENT,]
    compared = _baselines(config, rows, facts)
    contributions = sum(_contributors(rows))
    return Report(
        run=config.run.name,
        status=_status(config, rows, is_running),
        rounds=len(rows),
        rounds_planned=config.rounds,
        config_digest=config.digest(),
        method=config.outer.method,
        model=ModelPart(name=facts.model.name, parameters=facts.model.parameters),
        replicas=_replicas(config, facts, rows, sums),
        rounds_detail=details,
        traffic=traffic_parts(sums, predictor.of_all(rows)),
        pseudo_gradient=_pseudo_gradient(rows, facts),
        links=link_parts(directory, carriage.links),
        baselines=compared,
        loss=_loss(rows, facts),
        tokens=sum(row.total_tokens for row in rows),
        utilisation=_utilisation(by_phase for row in rows for by_phase in row.phase_s.values()),
        seconds="simulated" if are_seconds_simulated(directory) else "measured",
        sent_bytes=bytes_by(sums, SENT).total(),
        received_bytes=bytes_by(sums, RECEIVED).total(),
        sent_bytes_per_replica_round=sent_bytes / contributions if contributions and sums is not None else None,
        ratios=_ratios(compared, sent_bytes),
        members=member_parts(sums),
        matrix=matrix(sums),
        timeline=timeline(rows),
        curve=_curve(details),
        health=tuple(
            HealthPart(round=row.round, replica=replica, figures=figures)
            for row in rows
            for replica, figures in sorted(row.health.items())
        ),
        sequences=sequence_parts(directory),
        faults=_faults(rows),
    )


def _status(config: Config, rows: Rows, is_running: bool) -> Status:
    if is_running:
        return "running"
    return "complete" if rows and rows[-1].round >= config.rounds else "interrupted"


def _replicas(config: Config, facts: RunFacts, rows: Rows, sums: pa.Table | None) -> tuple[ReplicaPart, ...]:
    tokens, committed, phase_s = Counter[str](), Counter[str](), defaultdict[str, Counter[str]](Counter)
    for row in rows:
        tokens.update(row.tokens)
        committed.update(row.contributors)
        for replica, by_phase in row.phase_s.items():
            phase_s[replica].update(by_phase)
    sent, received = bytes_by(sums, SENT, "member"), bytes_by(sums, RECEIVED, "member")
    known = {replica.id: replica for replica in config.replica}
    return tuple(
        ReplicaPart(
            id=replica,
            **_form(known.get(replica), facts.model),
            tokens=tokens[replica],
            rounds_committed=committed[replica],
            sent_bytes=sent[replica,],
            received_bytes=received[replica,],
            phase_s=dict(phase_s[replica]),
            utilisation=_utilisation([phase_s[replica]]),
        )
        for replica in (*known, *sorted(committed.keys() - known.keys()))
    )


def _form(replica: ReplicaConfig | None, model: ModelFacts) -> dict[str, Any]:
    """What a replica consists of; one that joined without being in the config, of one rank."""
    if replica is None or not replica.pipeline:
        return {"kind": "dense", "ranks": 1 if replica is None else replica.ranks, "stages": 1, "rank_k": None}
    rank_k = None
    if replica.compression != "none":
        rank_k = replica.rank_k or model.default_rank_k
    stages = len(replica.pipeline)
    return {"kind": "pipeline", "ranks": stages, "stages": stages, "rank_k": rank_k}


def _rounds(rows: Rows, sums: pa.Table | None, predictor: Predictor) -> tuple[RoundPart, ...]:
    sent, of_kind = bytes_by(sums, SENT, "round"), bytes_by(sums, SENT, "round", "kind")
    details, started_s = [], 0.0
    for row in rows:
        details.append(
            RoundPart(
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
                started_s=started_s,
                round_s=row.duration_s,
                sent_bytes=sent[row.round,],
                pseudo_gradient_bytes=of_kind[row.round, PSEUDO_GRADIENT],
                predicted_bytes=predictor.pseudo_gradient(row),
            )
        )
        started_s += row.duration_s or 0.0
    return tuple(details)


def _curve(details: Iterable[RoundPart]) -> tuple[PointPart, ...]:
    points, tokens, sent_bytes = [], 0, 0
    for detail in details:
        tokens, sent_bytes = tokens + detail.tokens, sent_bytes + detail.sent_bytes
        until_s = None if detail.round_s is None else (detail.started_s or 0.0) + detail.round_s
        points.append(
            PointPart(
                round=detail.round,
                tokens=tokens,
                sent_bytes=sent_bytes,
                elapsed_s=until_s,
                loss=detail.loss,
                validation_loss=detail.validation_loss,
            )
        )
    return tuple(points)


def _faults(rows: Rows) -> tuple[FaultPart, ...]:
    faults = [FaultPart(round=row.round, replica=a.replica, reason=a.reason) for row in rows for a in row.absent]
    disagreed = [FaultPart(round=row.round, replica="", reason="digests differed") for row in rows if not row.agreed]
    return tuple(sorted(faults + disagreed, key=lambda fault: fault.round))


def _contributors(rows: Rows) -> list[int]:
    return [len(row.contributors) for row in rows]


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
            diloco_bf16_bytes=None,
            sparseloco_reference_wire_bytes=reference,
        )
    return BaselinesPart(
        ddp_fp32_bytes=baselines.ddp_bytes(contributors, steps, parameters, baselines.FP32_BYTES),
        ddp_bf16_bytes=baselines.ddp_bytes(contributors, steps, parameters, baselines.BF16_BYTES),
        diloco_fp32_bytes=baselines.diloco_bytes(contributors[every - 1 :: every], parameters, baselines.FP32_BYTES),
        diloco_bf16_bytes=baselines.diloco_bytes(contributors[every - 1 :: every], parameters, baselines.BF16_BYTES),
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


def _ratios(compared: BaselinesPart, sent_bytes: int) -> dict[str, float]:
    known = {name.removesuffix("_bytes"): num_bytes for name, num_bytes in compared}
    return {name: num_bytes / sent_bytes for name, num_bytes in known.items() if num_bytes and sent_bytes}


def _utilisation(accounts: Iterable[Mapping[str, float]]) -> float | None:
    told = list(accounts)
    total_s = sum(sum(by_phase.values()) for by_phase in told)
    return sum(by_phase.get(COMPUTE_PHASE, 0.0) for by_phase in told) / total_s if total_s else None
