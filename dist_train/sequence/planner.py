"""A step's plan: which ranks form groups in each micro-batch, and which sequences each group holds.

`adaptive` asks the linear program (bound.py) what a perfect step would look like, and searches (search.py) for limits
near it under which the greedy (packing.py) finds whole groups. `static:D` has groups of degree D alone, and
`best-homogeneous` the best such D for this step. All are functions of their arguments: the same lengths give the same
plan. Any of them may be called from a thread while the ranks compute; the loops are compiled and hold no lock.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dist_train.sequence.bound import Bound, lower_bound
from dist_train.sequence.errors import PlanningError
from dist_train.sequence.placement import placed
from dist_train.sequence.plan import SequencePlan
from dist_train.sequence.problem import Problem, problem_of, sample_of
from dist_train.sequence.search import Search, limits_of, one_more

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dist_train.sequence.cost import CostModel
    from dist_train.sequence.ranks import Ranks

    Lengths = Sequence[int] | NDArray[np.int64]

CALLS = 6000
"""Calls of the greedy on a step of 512 sequences and 64 ranks; larger steps get fewer, in proportion to their cost."""
FEWEST_CALLS = 160
CALLS_A_SEQUENCE = 20
"""Steps of few sequences have few plans."""
FAR = 1.03
"""A plan this far above its bound is worth a longer search:"""
CALLS_MORE = 6
"""so many times the calls."""
WIDE_CALLS = 50
"""Calls without the narrow groups, for each degree."""
FIRST = 6
"""One of so many calls comes before the bound."""
SAMPLED_RANKS = 64
"""More equal ranks than twice as many are first planned for as so many, with a part of the sequences."""
MIDDLE_RANKS = 256
"""Then for so many, if that too is only a part, from the limits found."""
LARGE_BUCKETS = 24
"""Of lengths, for the bound of a large step: its longest sequences are less of it, and buckets are more."""
CALL_COST = 512 * 64 * 6


def plan_step(lengths: Lengths, ranks: Ranks, cost: CostModel, planner: str = "adaptive") -> SequencePlan:
    """The plan of one step. `planner`: adaptive, best-homogeneous, or static:D. PlanningError when there can be none.

    Only adaptive plans carry a lower bound; it holds for every plan of the step.
    """
    started = time.perf_counter()
    match planner.split(":"):
        case ["adaptive"]:
            plan = _adaptive(problem_of(lengths, ranks, cost), cost)
        case ["best-homogeneous"]:
            plan = _best_homogeneous(lengths, ranks, cost)
        case ["static", degree] if degree.isascii() and degree.isdigit() and int(degree) in ranks.degrees:
            plan = _searched(problem_of(lengths, ranks, cost, [int(degree)]))
        case _:
            allowed = ", ".join(f"static:{degree}" for degree in ranks.degrees)
            raise PlanningError(f'there is no planner "{planner}": choose adaptive, best-homogeneous, {allowed}')
    return replace(plan, planner=planner, solve_s=time.perf_counter() - started)


def _adaptive(problem: Problem, cost: CostModel) -> SequencePlan:
    search, sample = Search(problem, _calls(problem)), sample_of(problem, cost, SAMPLED_RANKS)
    if sample is None:
        bound = _solve(problem, search)
        search.restart(_starts(bound), CALLS_MORE * _calls(problem), bound.step_s * FAR)
        return _plan(problem, search, bound)
    # A large step has the limits of a small one that looks like it; each call of the greedy is dear.
    small = Search(sample, _calls(sample) // 2)
    _solve(sample, small)
    limits, middle = small.limits_s, sample_of(problem, cost, MIDDLE_RANKS)
    if middle is not None:
        between = Search(middle, _calls(middle))
        for start in (limits, one_more(limits)):
            between.trade_from(start, _calls(middle) // 2)
        limits = between.limits_s if between.best is not None else limits
    search.from_limits(limits, descend=False)
    bound = lower_bound(problem, _found(search), 1, LARGE_BUCKETS)
    search.target_s = bound.step_s
    search.trade()
    return _plan(problem, search, bound)


def _solve(problem: Problem, search: Search) -> Bound:
    """Searches for the best packing; the bound."""
    search.even()
    for degree in sorted(set(problem.degree))[1:]:
        # The greedy opens narrow groups first: what needs wide ones from the start it finds only without them.
        wide = Search(replace(problem, capacity=np.where(problem.degree < degree, 0, problem.capacity)), WIDE_CALLS)
        if problem.lengths[0] <= wide.problem.capacity.max():
            wide.even()
            search.consider(wide.best)
    # A better plan now spares linear programs: there is less left to prove.
    search.trade_from(search.limits_s, _calls(problem) // FIRST)
    bound = lower_bound(problem, _found(search))
    search.target_s = bound.step_s
    starts = _starts(bound)
    for limits in starts:
        search.from_limits(limits)
        for packing in search.towers(limits):
            search.descend(packing)
    search.trade(*starts, one_more(search.limits_s))
    return bound


def _starts(bound: Bound) -> list[NDArray[np.float64]]:
    """Limits of a step that met the bound, as far as it says."""
    return [limits_of(layers) for layers in (bound.layers, bound.whole_layers) if layers]


def _best_homogeneous(lengths: Lengths, ranks: Ranks, cost: CostModel) -> SequencePlan:
    plans, refused = [], []
    for degree in ranks.degrees:
        try:
            plans.append(_searched(problem_of(lengths, ranks, cost, [degree])))
        except PlanningError as error:
            refused.append(error)
    if not plans:
        raise refused[-1]
    return min(plans, key=lambda plan: plan.predicted_s)


def _searched(problem: Problem) -> SequencePlan:
    search = Search(problem, _calls(problem) // 4)
    search.even()
    _found(search)
    if search.best is not None:
        search.descend(search.best)
    search.trade()
    return _plan(problem, search, Bound(math.nan, ()))


def _calls(problem: Problem) -> int:
    size = len(problem.lengths) * len(problem.ranks) * problem.fewest_micro_batches
    affordable = max(FEWEST_CALLS, min(CALLS, CALLS * CALL_COST // size))
    return min(affordable, 100 + CALLS_A_SEQUENCE * len(problem.lengths))


def _found(search: Search) -> float:
    """Seconds of the best packing; there is one, because each sequence fits alone and micro-batches are free."""
    if search.best is None:
        raise PlanningError("no packing was found: this is a bug in the planner")
    return search.best.step_s


def _plan(problem: Problem, search: Search, bound: Bound) -> SequencePlan:
    seconds = _found(search)
    best = search.best
    assert best is not None  # noqa: S101 - _found has seen it
    return SequencePlan(placed(problem, best), seconds, min(bound.step_s, seconds), math.nan, "")
