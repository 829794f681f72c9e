"""The plan of step t + 1 is solved while step t runs: planning never shows in a step, unless it is slower than one.

    rank 0:  announce(lengths of t + 1)  ->  a planning process solves   | meanwhile all ranks run step t
    rank 0:  take: waits at most `patience_s`, else the fallback's plan   -> broadcast
    others:  take:                                                       <- the same plan, as JSON

Only rank 0 plans, so the ranks cannot differ, however the planner was built. Lengths that cannot be planned are an
error on every rank.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from dist_train.sequence.errors import PlanningError
from dist_train.sequence.plan import Group, MicroBatch, SequencePlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dist_train.data.batches import Batch
    from dist_train.sequence.groups import RankGroups
    from dist_train.sequence.step import StepResult

    Planner = Callable[[tuple[int, ...]], SequencePlan]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedStep:
    """A plan, and what getting it cost the step."""

    plan: SequencePlan
    waited_s: float
    """What the step waited for it on rank 0, the fallback's time included."""
    late: bool
    """Whether it is the fallback's, because the planner's was not there in time."""

    def metrics(self, result: StepResult) -> dict[str, float | int | str]:
        """What there is to know about a step that was run by this plan."""
        degrees = [len(group.ranks) for batch in self.plan.micro_batches for group in batch.groups]
        return {
            "planner": self.plan.planner,
            "late": int(self.late),
            "planning_s": self.plan.solve_s,
            "waiting_s": self.waited_s,
            "predicted_s": self.plan.predicted_s,
            "lower_bound_s": self.plan.lower_bound_s,
            "gap": self.plan.predicted_s / (self.plan.lower_bound_s or math.nan) - 1,
            "measured_s": result.measured_s,
            "reduce_s": result.reduce_s,
            "micro_batches": len(self.plan.micro_batches),
            "groups": len(degrees),
            "largest_degree": max(degrees, default=0),
            "degrees": " ".join(map(str, degrees)),
        }


class PlanAhead:
    """Plans for the ranks of a replica, one step ahead. All ranks make one, and call `take` together.

    `plan` and `fallback` give the plan of a step with these lengths. `plan` runs in `executor`, by default a process of
    its own (then it must be picklable), because a planner in a thread would take the interpreter from the training;
    `fallback` runs where it is needed, so it must be quick. With `patience_s` None a step waits for its plan, however
    long: then the same lengths always run by the same plan, and repeat bit for bit.
    """

    def __init__(
        self,
        ranks: RankGroups,
        plan: Planner,
        fallback: Planner,
        *,
        patience_s: float | None = 1.0,
        executor: Executor | None = None,
    ) -> None:
        self._ranks = ranks
        self._plan, self._fallback = plan, fallback
        self._patience_s = patience_s
        self._executor = executor
        if executor is None and ranks.rank == 0:
            self._submit((1,))  # so that a process is there, and the planner imported, when the first step asks
        self._announced: tuple[tuple[int, ...], Future[SequencePlan]] | None = None

    def announce(self, lengths: Sequence[int]) -> None:
        """Begins to solve the plan of a coming step; returns at once. An earlier announcement is forgotten."""
        if self._ranks.rank == 0:
            self._solution_of(tuple(lengths))

    def take(self, lengths: Sequence[int]) -> PlannedStep:
        """The plan of the step that begins now, the same on all ranks; announced by now, or else only now.

        PlanningError on every rank when there is none.
        """
        return self._agreed(lambda: self._solved(tuple(lengths)))

    def quick(self, lengths: Sequence[int]) -> SequencePlan:
        """The fallback's plan, the same on all ranks, which call this together; PlanningError as in `take`."""
        return self._agreed(lambda: (self._fallback(tuple(lengths)), False)).plan

    def steps(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, PlannedStep]]:
        """Each batch with its plan; while the caller works on one, the plan of the next is solved."""
        following = iter(batches)
        batch = next(following, None)
        while batch is not None:
            planned = self.take(batch.document_lengths)
            after = next(following, None)
            if after is not None:
                self.announce(after.document_lengths)
            yield batch, planned
            batch = after

    def close(self) -> None:
        """Ends the planning process."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the planning process."""
        self.close()

    def _agreed(self, solve: Callable[[], tuple[SequencePlan, bool]]) -> PlannedStep:
        """What rank 0 finds, on every rank."""
        facts = self._ranks.broadcast(_facts(solve) if self._ranks.rank == 0 else None)
        if error := facts.get("error"):
            raise PlanningError(error)
        return PlannedStep(_plan_of(facts["plan"]), float(facts["waited_s"]), bool(facts["late"]))

    def _solved(self, lengths: tuple[int, ...]) -> tuple[SequencePlan, bool]:
        solution = self._solution_of(lengths)
        self._announced = None
        try:
            return solution.result(self._patience_s), False
        except TimeoutError:
            reason = f"was not there after {self._patience_s} s"
            solution.cancel()  # where it has begun, the next one begins when it ends
        except BrokenExecutor as error:
            reason = f"will not come ({error})"
            self._executor = None
        plan = self._fallback(lengths)
        _log.warning("the plan of a step of %d sequences %s; it runs by %s", len(lengths), reason, plan.planner)
        return plan, True

    def _solution_of(self, lengths: tuple[int, ...]) -> Future[SequencePlan]:
        if self._announced and self._announced[0] == lengths:
            return self._announced[1]
        if self._announced:
            self._announced[1].cancel()
        self._announced = (lengths, self._submit(lengths))
        return self._announced[1]

    def _submit(self, lengths: tuple[int, ...]) -> Future[SequencePlan]:
        try:
            self._executor = self._executor or planning_process()
            return self._executor.submit(self._plan, lengths)
        except BrokenExecutor:  # it ended since it was last used
            self._executor = planning_process()
            return self._executor.submit(self._plan, lengths)


def _facts(solve: Callable[[], tuple[SequencePlan, bool]]) -> dict[str, Any]:
    """What rank 0 broadcasts. It never raises: the others are waiting for it."""
    started_s = time.monotonic()
    try:
        plan, late = solve()
    except Exception as error:  # noqa: BLE001 the planner is the caller's; all ranks must hear of it
        return {"error": str(error) or repr(error)}
    return {"plan": asdict(plan), "late": late, "waited_s": time.monotonic() - started_s}


def planning_process() -> ProcessPoolExecutor:
    """A process that plans one step after another, and ends with this one, however this one ends."""
    spawning = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max_workers=1, mp_context=spawning, initializer=_end_with_parent)


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _plan_of(facts: dict[str, Any]) -> SequencePlan:
    micro_batches = tuple(
        MicroBatch(tuple(Group(tuple(group["ranks"]), tuple(group["sequences"])) for group in batch["groups"]))
        for batch in facts["micro_batches"]
    )
    return SequencePlan(micro_batches, facts["predicted_s"], facts["lower_bound_s"], facts["solve_s"], facts["planner"])
