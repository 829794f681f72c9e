"""The engine of several ranks that each hold the whole model and run every step by a plan of its own.

    calibrate once            a few forward and backward passes, fitted to the cost model; kept in the run
    step t                    take the plan of t, begin to solve that of t + 1, run t              (see `ahead`, `step`)

Loss and gradients are those of one process, whatever the plan. Every step's planning, waiting, predicted and measured
seconds are written down by rank 0; their means over a round are in the run's metrics.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from comms.ledger import Ledger
from dist_train.config import Config, ConfigError, ReplicaConfig
from dist_train.config.budget import sharing_problems, tokens_per_rank
from dist_train.data.batches import Batch
from dist_train.model import architecture_of
from dist_train.predicted_traffic import PredictedTraffic
from dist_train.sequence.ahead import PlanAhead
from dist_train.sequence.calibration import Calibration, Sample, all_to_all_bytes, fit, load
from dist_train.sequence.gradients import evaluation_bytes, shard, step_bytes
from dist_train.sequence.groups import RankGroups, join_ranks
from dist_train.sequence.measure import calibration_cases, measure, measure_reduction
from dist_train.sequence.plan import SequencePlan
from dist_train.sequence.planner import plan_step
from dist_train.sequence.ranks import Ranks
from dist_train.sequence.step import accumulate, evaluate
from dist_train.sequence.ulysses import step_all_to_all_bytes
from dist_train.shards import whole

_log = logging.getLogger(__name__)
FP32_BYTES, BF16_BYTES = 4, 2
FALLBACK = "best-homogeneous"
"""Who plans a step whose plan is late: quick, and nearly as good."""
AVERAGED = ("planning_s", "waiting_s", "predicted_s", "measured_s", "lower_bound_s", "late")


@dataclass
class SequenceEngine:
    """This rank, with the others of its replica."""

    model: nn.Module
    ranks: RankGroups
    plans: PlanAhead
    reduction_s: float
    """What summing the gradients takes, which a plan does not count."""
    ledger: Ledger
    replica: str
    log: Path
    """Where rank 0 writes a line for every step."""
    _next: tuple[int, ...] | None = None
    _plans: dict[tuple[int, ...], SequencePlan] = field(default_factory=dict)
    _steps: list[dict[str, float | int | str]] = field(default_factory=list)
    _predicted: PredictedTraffic = field(default_factory=PredictedTraffic)

    def expect(self, lengths: Sequence[int] | None) -> None:
        """Says what the step after the coming one will consist of, so that it can be planned in time."""
        self._next = None if lengths is None else tuple(lengths)

    def gradient(self, batch: Batch) -> float:
        """The gradient of the batch, by its plan; the loss on rank 0, 0 on the others."""
        planned = self.plans.take(batch.document_lengths)
        if self._next is not None:
            self.plans.announce(self._next)
        result = accumulate(self.model, batch, planned.plan, self.ranks)
        facts = planned.metrics(result)
        self._steps.append({**facts, "predicted_s": planned.plan.predicted_s + self.reduction_s})
        self.ranks.traffic.tally(self.ledger, self._peer)
        self._predict(planned.plan, batch)
        return result.loss if self.ranks.rank == 0 else 0.0

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """This rank's part of every batch, by a quick plan: the budget of tokens holds here, too."""
        total, num_targets = 0.0, 0
        for batch in batches:
            plan = self._plan_of_validation(batch.document_lengths)
            loss, targets = evaluate(self.model, batch, plan, self.ranks)
            total, num_targets = total + loss, num_targets + targets
            self._predict_evaluation(plan, batch)
        self.ranks.traffic.tally(self.ledger, self._peer)
        return total, num_targets

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients, whole on every rank or sharded."""
        return whole(get_total_norm(gradients))

    def figures(self) -> dict[str, float]:
        """Means over the steps since this was last asked, and what all ranks should have sent, by rank 0."""
        steps, self._steps = self._steps, []
        predicted = self._predicted.figures()
        if self.ranks.rank != 0 or not steps:
            return predicted
        with self.log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(step) + "\n" for step in steps)
        means = {name: fmean(float(step[name]) for step in steps) for name in AVERAGED if _known(steps, name)}
        return {f"sequence_{name}": mean for name, mean in means.items()} | predicted

    def _plan_of_validation(self, lengths: tuple[int, ...]) -> SequencePlan:
        """The same documents come back in every validation: planned once."""
        if lengths not in self._plans:
            self._plans[lengths] = self.plans.quick(lengths)
        return self._plans[lengths]

    def _predict(self, plan: SequencePlan, batch: Batch) -> None:
        """Counts what a step by `plan` should have sent."""
        gradients = step_bytes(self.model, self.ranks.count, len(plan.micro_batches))
        self._predicted.add({"sequence_all_to_all": self._exchanged(plan, batch), "intra_replica": gradients})

    def _predict_evaluation(self, plan: SequencePlan, batch: Batch) -> None:
        """The same for a batch that is only evaluated."""
        gathered = evaluation_bytes(self.model, self.ranks.count, len(plan.micro_batches))
        self._predicted.add({"sequence_all_to_all": self._exchanged(plan, batch) // 2, "intra_replica": gathered})

    def _exchanged(self, plan: SequencePlan, batch: Batch) -> int:
        """Bytes of all-to-alls, one half of them forward."""
        on_gpu = self.ranks.device.type == "cuda"
        value_bytes = BF16_BYTES if on_gpu else next(self.model.parameters()).element_size()
        return step_all_to_all_bytes(plan, batch.document_lengths, self.model.config, value_bytes=value_bytes)

    def _peer(self, rank: int) -> str:
        return f"{self.replica}.{rank if rank >= 0 else 'ranks'}"


def sequence_engine(
    config: Config, replica: ReplicaConfig, model: nn.Module, folder: Path, ledger: Ledger
) -> SequenceEngine:
    """The engine of a replica whose ranks torchrun has started; all of them call it together.

    Calibrates in the first start of a run. ConfigError when the model's heads leave its longest document no plan, or
    when it drops attention at random.
    """
    architecture = architecture_of(config.model)
    heads = architecture.num_attention_heads
    for problem in sharing_problems(config, replica, heads):
        raise ConfigError(f'replica "{replica.id}": {problem}')
    if dropout := getattr(architecture, "attention_dropout", 0.0):
        raise ConfigError(
            f'replica "{replica.id}": the model of model.path has attention_dropout = {dropout:g}, and what is dropped '
            'would depend on the plan; set it to 0 in its config.json, or sequence.planner = "off"'
        )
    ranks, capacity = join_ranks(timeout_s=config.exchange.outage_deadline_s), tokens_per_rank(config, replica, heads)
    if replica.shard:
        shard(model, ranks)  # in place, before anybody keeps its parameters
    kept = folder / f"sequence-{replica.id}.json"
    calibration, reduction_s = _calibrated(model, ranks, capacity, architecture, kept)
    seen = Ranks.equal(ranks.count, capacity, max_degree=heads)
    plan = partial(plan_step, ranks=seen, cost=calibration.cost)
    plans = PlanAhead(
        ranks,
        partial(plan, planner=config.sequence.planner),
        partial(plan, planner=FALLBACK),
        patience_s=config.sequence.plan_deadline_s,
    )
    return SequenceEngine(model, ranks, plans, reduction_s, ledger, replica.id, folder / f"steps-{replica.id}.jsonl")


def _calibrated(
    model: nn.Module, ranks: RankGroups, capacity: int, architecture: Any, path: Path
) -> tuple[Calibration, float]:
    """What was fitted on this machine before, or is fitted now; and the seconds of summing the gradients."""
    known = ranks.broadcast(path.is_file())
    heads, layers, d = architecture.num_attention_heads, architecture.num_hidden_layers, architecture.hidden_size
    if not known:
        _log.info("calibrating sequence parallelism on %d ranks", ranks.count)
        found = measure(model, ranks, calibration_cases(ranks.count, heads, capacity))
        if ranks.rank == 0:
            token_bytes = all_to_all_bytes(layers, d, bytes_per_value=FP32_BYTES)
            fitted = fit([Sample(one.lengths, one.degree, one.seconds) for one in found], token_bytes)
            fitted.save(path)
            _log.info("calibrated: mean error %.1f %%", 100 * fitted.mean_error)
    reduction_s = measure_reduction(model, ranks)
    ranks.wait_for_all()
    ranks.traffic.moved.clear()  # what was only measured is no part of the training
    return load(path), reduction_s


def _known(steps: Sequence[dict[str, float | int | str]], name: str) -> bool:
    return all(float(step[name]) == float(step[name]) for step in steps)  # not a number: that planner has no bound
