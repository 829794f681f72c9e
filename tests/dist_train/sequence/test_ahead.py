"""Plans are solved a step ahead, are the same on all ranks, and never hold up a step for longer than was said."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from dist_train.data.batches import Batch
from dist_train.sequence.ahead import PlanAhead, planning_process
from dist_train.sequence.errors import PlanningError
from dist_train.sequence.groups import RankGroups
from dist_train.sequence.plan import SequencePlan
from dist_train.sequence.step import StepResult
from tests.planners import dies, fallback, one_group, waits_for
from tests.ranks import run_on_ranks


def all_the_same(ranks: RankGroups, plan: SequencePlan) -> bool:
    return bool(ranks.broadcast(repr(plan)) == repr(plan))


def in_a_process(ranks: RankGroups) -> None:
    """Steps by a planning process; what no rank can plan is an error on each, and the next step goes on."""
    batches = [Batch(torch.zeros(sum(lengths), dtype=torch.int64), lengths) for lengths in ((9, 3), (5,), (2, 2, 1))]
    with PlanAhead(ranks, partial(one_group, planner="ahead"), fallback, patience_s=None) as planner:
        pids = set()
        for batch, planned in planner.steps(batches):
            assert planned.plan.planner == "ahead"
            assert planned.plan.predicted_s == batch.num_tokens
            assert not planned.late
            assert all_the_same(ranks, planned.plan)
            pids.add(planned.plan.solve_s)
            metrics = planned.metrics(StepResult(2.0, 0.5, 0.25))
            assert metrics["waiting_s"] == planned.waited_s >= 0
            assert (metrics["measured_s"], metrics["reduce_s"], metrics["late"]) == (0.5, 0.25, 0)
            assert (metrics["predicted_s"], metrics["groups"]) == (batch.num_tokens, 1)
        assert len(pids) == 1
        assert os.getpid() not in pids
        with pytest.raises(PlanningError, match="a sequence of 101 tokens needs 2 ranks"):
            planner.take((101, 5))
        assert planner.take((100,)).plan.planner == "ahead"


def at_odds(ranks: RankGroups) -> None:
    """Ranks that were built with unlike planners, or asked about unlike lengths, all follow rank 0."""
    mine = partial(one_group, planner=f"of rank {ranks.rank}")
    with ThreadPoolExecutor(1) as executor, PlanAhead(ranks, mine, fallback, executor=executor) as planner:
        planned = planner.take((4 + ranks.rank, 3))
        assert (planned.plan.planner, planned.plan.predicted_s) == ("of rank 0", 7)
        assert all_the_same(ranks, planned.plan)


def late(ranks: RankGroups) -> None:
    """A planner that is too slow costs a step its patience, once; what it finds later serves nobody else."""
    event = threading.Event()
    with (
        ThreadPoolExecutor(1) as executor,
        PlanAhead(ranks, partial(waits_for, event), fallback, patience_s=0.05, executor=executor) as planner,
    ):
        planner.announce((4, 3))
        planned = planner.take((4, 3))
        assert planned.late
        assert planned.plan.planner == "fallback"
        assert planned.waited_s >= 0.05
        assert all_the_same(ranks, planned.plan)
        planner.announce((9,))
        planner.announce((7, 1))  # another step comes next after all
        event.set()
        planned = planner.take((7, 1))
        while planned.late:  # as long as the first solution is on its way
            planned = planner.take((7, 1))
        assert planned.plan.planner == "patient"
        assert planned.plan.predicted_s == 8


def dead(ranks: RankGroups) -> None:
    """A planning process that dies does not end the training."""
    with PlanAhead(ranks, dies, fallback, patience_s=None) as planner:
        for lengths in ((4, 3), (2,)):
            planned = planner.take(lengths)
            assert planned.late
            assert planned.plan.planner == "fallback"
            assert all_the_same(ranks, planned.plan)


def hopeless(ranks: RankGroups) -> None:
    """A fallback that fails does not make the other ranks wait."""
    never = threading.Event()
    with (
        ThreadPoolExecutor(1) as executor,
        PlanAhead(ranks, partial(waits_for, never), fallback, patience_s=0.01, executor=executor) as planner,
    ):
        with pytest.raises(PlanningError, match="a sequence of 101 tokens needs 2 ranks"):
            planner.take((101,))
        never.set()


@pytest.mark.parametrize("story", [in_a_process, at_odds, late, dead, hopeless])
def test_plans_arrive_on_all_ranks(story: object, tmp_path: Path) -> None:
    assert callable(story)
    run_on_ranks(2, tmp_path, story)


def orphan() -> None:
    """Says the process id of a planner at work, and waits to be killed."""
    print(planning_process().submit(os.getpid).result(), flush=True)
    time.sleep(60)


def test_a_planning_process_ends_with_its_parent() -> None:
    code = "from test_ahead import orphan\nif __name__ == '__main__': orphan()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        planner = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        gone, _ = psutil.wait_procs([planner], timeout=30)
    assert gone
