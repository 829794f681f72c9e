"""A (mixed-integer) linear program, row by row, solved by HiGHS on one thread: deterministic."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import highspy
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

INFINITY = math.inf


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
        """The optimum, or what was found when a limit was met (a limit in seconds is not deterministic). Blocks."""
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(self._cost), len(self._row_lower)
        program.col_cost_, program.col_lower_ = np.array(self._cost), np.array(self._lower)
        program.col_upper_ = np.array(self._upper)
        program.row_lower_, program.row_upper_ = np.array(self._row_lower), np.array(self._row_upper)
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = np.array(self._starts)
        program.a_matrix_.index_, program.a_matrix_.value_ = np.array(self._columns), np.array(self._factors)
        is_mixed = any(self._integer)
        if is_mixed:
            kinds = highspy.HighsVarType
            program.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in self._integer]
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0), ("mip_rel_gap", gap)):
            solver.setOptionValue(option, value)
        solver.setOptionValue("mip_max_nodes", nodes)
        if limit_s < INFINITY:
            solver.setOptionValue("time_limit", float(limit_s))
        solver.passModel(program)
        solver.run()
        info = solver.getInfo()
        has_solution = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
        values = np.array(solver.getSolution().col_value) if has_solution else np.zeros(0)
        if is_mixed:
            return Solved(float(info.mip_dual_bound), values)
        is_optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return Solved(float(info.objective_function_value) if is_optimal else -INFINITY, values)
