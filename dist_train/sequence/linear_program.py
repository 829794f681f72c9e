"""A (mixed-integer) linear program, row by row, solved by HiGHS on one thread: deterministic."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import highspy
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

INFINITY = math.inf
WHOLE = 1e-6
"""A value this near a whole number is one."""


@dataclass(frozen=True)
class Effort:
    """What branching may cost."""

    solves: int
    """Linear programs."""
    iterations: int = 2**31 - 1
    """Of the simplex method, in all, after which no further cut is made."""
    limit_s: float = INFINITY
    """CPU seconds of this process. A limit makes the result depend on the machine; the two above don't."""
    enough: float = INFINITY
    """A bound that needs no further proof."""


@dataclass(frozen=True)
class Solved:
    """What the solver says."""

    bound: float
    """No solution is below it; -inf when the solver did not get that far."""
    values: NDArray[np.float64]
    """The best solution found; empty when there is none."""


@dataclass
class LinearProgram:
    """Minimises the sum of cost times value over the columns, within the rows."""

    _cost: list[float] = field(default_factory=list)
    _lower: list[float] = field(default_factory=list)
    _upper: list[float] = field(default_factory=list)
    _integer: list[bool] = field(default_factory=list)
    _row_lower: list[float] = field(default_factory=list)
    _row_upper: list[float] = field(default_factory=list)
    _starts: list[int] = field(default_factory=lambda: [0])
    _columns: list[int] = field(default_factory=list)
    _factors: list[float] = field(default_factory=list)

    def column(self, lower: float = 0.0, upper: float = INFINITY, cost: float = 0.0, *, integer: bool = False) -> int:
        """Adds a variable; its number."""
        self._cost.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        self._integer.append(integer)
        return len(self._cost) - 1

    def row(self, terms: Iterable[tuple[int, float]], lower: float = -INFINITY, upper: float = INFINITY) -> None:
        """Adds `lower <= sum of factor times column <= upper`; terms are pairs (column, factor)."""
        for column, factor in terms:
            self._columns.append(column)
            self._factors.append(factor)
        self._starts.append(len(self._columns))
        self._row_lower.append(lower)
        self._row_upper.append(upper)

    def solve(self, gap: float = 1e-4, limit_s: float = INFINITY, nodes: int = 2**31 - 1) -> Solved:
        """The optimum, or what was found when a limit was met. A limit is in CPU seconds of this process, so that it
        means the same on a busy machine; it is not deterministic. Blocks."""
        solver, is_mixed = self._solver(relaxed=False), any(self._integer)
        for option, value in (("mip_rel_gap", gap), ("mip_max_nodes", nodes)):
            solver.setOptionValue(option, value)
        if limit_s < INFINITY:
            until_s = time.process_time() + limit_s

            def stop(event: highspy.highs.HighsCallbackEvent) -> None:
                if time.process_time() >= until_s:
                    event.interrupt()

            solver.cbMipInterrupt += stop
            solver.cbSimplexInterrupt += stop
        solver.run()
        info = solver.getInfo()
        has_solution = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
        values = np.array(solver.getSolution().col_value) if has_solution else np.zeros(0)
        if is_mixed:
            return Solved(float(info.mip_dual_bound), values)
        return _optimum(solver)

    def branch(self, weights: Mapping[int, float], effort: Effort) -> tuple[Solved, Solved]:
        """The optimum, and the bound when the columns of `weights` shall be whole, by linear programs each begun where
        the last one ended. It cuts where the bound is lowest, at the column whose distance from a whole number, times
        its weight, is the largest; the values are of that place."""
        until_s = time.process_time() + effort.limit_s
        whole, weight = np.array(list(weights)), np.array(list(weights.values()))
        solver = self._solver(relaxed=True)
        solver.setOptionValue("presolve", "off")
        solver.run()
        root = _optimum(solver)
        nodes: list[tuple[float, int, dict[int, tuple[float, float]], Solved]] = [(root.bound, 0, {}, root)]
        solved, iterations = 1, solver.getInfo().simplex_iteration_count
        while len(nodes[0][3].values) and nodes[0][0] < effort.enough:
            if solved + 1 >= effort.solves or iterations >= effort.iterations or time.process_time() >= until_s:
                break
            bound, _, within, solution = nodes[0]
            away = np.abs(solution.values[whole] - np.round(solution.values[whole]))
            if away.max() <= WHOLE:
                break
            heapq.heappop(nodes)
            cut = int(whole[np.argmax(np.where(away > WHOLE, away * weight, 0.0))])
            least = math.floor(solution.values[cut])
            low, high = within.get(cut, (self._lower[cut], self._upper[cut]))
            for part in ((low, float(least)), (least + 1.0, high)):
                child = {**within, cut: part}
                for column in weights:
                    solver.changeColBounds(column, *child.get(column, (self._lower[column], self._upper[column])))
                solver.run()
                solved, iterations = solved + 1, iterations + solver.getInfo().simplex_iteration_count
                if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
                    continue
                found = _optimum(solver)
                # A program that was not solved to the end proves no more than the one it was cut from.
                heapq.heappush(nodes, (max(bound, found.bound), solved, child, found))
            if not nodes:
                return root, Solved(INFINITY, np.zeros(0))
        return root, Solved(nodes[0][0], nodes[0][3].values)

    def _solver(self, *, relaxed: bool) -> highspy.Highs:
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(self._cost), len(self._row_lower)
        program.col_cost_, program.col_lower_ = np.array(self._cost), np.array(self._lower)
        program.col_upper_ = np.array(self._upper)
        program.row_lower_, program.row_upper_ = np.array(self._row_lower), np.array(self._row_upper)
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = np.array(self._starts)
        program.a_matrix_.index_, program.a_matrix_.value_ = np.array(self._columns), np.array(self._factors)
        if any(self._integer) and not relaxed:
            kinds = highspy.HighsVarType
            program.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in self._integer]
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
            solver.setOptionValue(option, value)
        solver.passModel(program)
        return solver


def _optimum(solver: highspy.Highs) -> Solved:
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return Solved(-INFINITY, np.zeros(0))
    return Solved(float(solver.getInfo().objective_function_value), np.array(solver.getSolution().col_value))
