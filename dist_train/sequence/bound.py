r"""The certified lower bound: no plan of this step is faster, whatever its micro-batches, groups and assignment.

It bounds the WHOLE step: how many micro-batches there are and what stands in which is for the program to choose, so the
gap against it is the gap of the step, and not one of given micro-batches.

Symbols: a step is any number of micro-batches; one takes C, the time of its slowest group. The range of C is cut at
e_0 < e_1 < ... < e_J into intervals j. All quantities below are sums over the micro-batches whose C lies in interval j:

    z_j    how many they are,                    T_j    their seconds, the sum of C
    n_cj   groups on slots of kind c,            y_cj   the sum of C over those groups
    x_qcj  tokens of bucket q in groups of kind c

For every plan these numbers satisfy

    minimise sum_j T_j                                                                                (1)
    e_j z_j <= T_j <= e_{j+1} z_j ;  e_j n_cj <= y_cj <= e_{j+1} n_cj ;  sum_j z_j = M whole          (2)
    sum_cj x_qcj = tokens of q ;  x_qcj = 0 where q's shortest does not fit kind c, or not within e_{j+1}   (3)
    sum_q t_qc x_qcj + g_c w_cj + f_c n_cj <= y_cj    each group ends within its micro-batch          (4)
    sum_q x_qcj <= E_c n_cj                      each group fits in memory                            (5)
    with u_j = R z_j - sum_c r_c n_cj, v_j = R T_j - sum_c r_c y_cj  (idle ranks of a kind, idle time):
    u_j >= 0 ;  e_j u_j <= v_j <= e_{j+1} u_j                                                         (6)
    sum over q longer than E_c / 2 of count x_qcj <= n_cj                 two do not fit in memory    (7)
    the same over q that take more than half of e_{j+1} - f_c             two do not fit in time      (8)
    for these, with C_qc the time of a group of q alone: y_cj - e_j n_cj >= sum_q (C_qc - e_j)+ count x_qcj   (9)
    for a single sequence q: sum_c x_qcj <= z_j and T_j - e_j z_j >= sum_c (C_qc - e_j)+ x_qcj        (10)
    sum_cj w_cj = 1 ;  w_cj <= sum_q h_q x_qcj                                                       (11)

with t_qc the seconds a token of the bucket's shortest sequence takes (a longer one takes more), f_c a group's fixed
seconds, E_c its capacity, and counts underestimated as tokens over the bucket's longest sequence. So the minimum of (1)
bounds every plan. Tokens are not rounded to buckets. What t_qc leaves out of the squared term is known for the step as
a whole, g_c seconds; w_cj is the part of it that stands in c and j, h_q the most that bucket q can bring. (2) and (6)
lose where a wide interval lets groups of one micro-batch have different C: the intervals that the solution uses are cut
again, and the program is solved again. Then branch and bound, best first, asks for whole numbers where a fraction saves
the most: of micro-batches (one more or less weighs most where memory is short), the kind of the longest one's group,
z_j, wide groups, and one interval for each of the longest sequences. Few programs are spent on it while a step waits
for its plan; `certify` spends many.

Holds up to the solver's tolerance of 1e-7. Paper: none; FlexSP solves each micro-batch and stops after a time limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dist_train.sequence.buckets import BUCKETS, SINGLES, Buckets, bucket
from dist_train.sequence.linear_program import Effort, LinearProgram, Solved

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dist_train.sequence.problem import Problem

INTERVALS = 14
MANY_KINDS = 16
SOLVES = 30
"""Linear programs spent on whole numbers, and"""
ITERATIONS = 25_000
"""iterations of the simplex method on all of them."""
CERTIFIES, CERTAIN = 5000, 0.999
"""Linear programs of `certify`, and the part of the horizon with which it is content."""
KIND, INTERVAL = 1, 2
"""Of the keys of x_qcj."""
DECIDES = 1e3
"""What is made whole before anything else: the number of micro-batches, and the kind of the longest one's group."""
WIDE = 0.25
"""Whole numbers are asked for of groups that take at least this part of the ranks."""
HEIGHTS = 4
"""So many of the longest sequences are each in one interval."""
GOOD = 0.985
"""No more are spent when the bound is this part of the horizon."""
NEAR = 0.02
"""A used interval is cut this far before and after the time that the solution gives it."""
SNAP = 1.2
"""An edge moves up to a sequence's own time when that is less than this factor away."""
ROUNDING = 1e-6
"""Left-out seconds below this part of a sequence's own are not counted."""
SAFETY = 1 - 1e-6
"""The solver's tolerances, taken off the bound."""


@dataclass(frozen=True)
class Bound:
    """A lower bound, and what a plan that met it would look like."""

    step_s: float
    layers: tuple[tuple[float, float], ...]
    """Pairs (seconds, how many micro-batches take about so long), falling. Counts may be fractions."""
    whole_layers: tuple[tuple[float, float], ...] = ()
    """The same when whole counts were asked for; empty when they were not."""


def lower_bound(problem: Problem, horizon_s: float, solves: int = SOLVES, many: int = BUCKETS) -> Bound:
    """The bound by the linear program, in tenths of a second. No micro-batch of an optimal plan may take longer than
    `horizon_s`: the seconds of any known plan will do. The last `solves` programs ask for whole numbers, as far as they
    get. Beyond the longest sequences there are `many` buckets."""
    return _bound(problem, horizon_s, many, Effort(solves, ITERATIONS, enough=GOOD))


def certify(problem: Problem, horizon_s: float, known: Bound, limit_s: float) -> Bound:
    """A bound at least as tight as `known`, by programs of up to `limit_s` CPU seconds, so it is not deterministic."""
    tight = _bound(problem, horizon_s, BUCKETS, Effort(CERTIFIES, limit_s=limit_s, enough=CERTAIN))
    return replace(tight, step_s=max(known.step_s, tight.step_s))


def _bound(problem: Problem, horizon_s: float, many: int, effort: Effort) -> Bound:
    relaxed = _in_units_of(horizon_s, _with_few_kinds(problem))
    buckets = bucket(relaxed.lengths, buckets=many)
    program = _Program(relaxed, buckets, _first_edges(relaxed, 1.0))
    first = program.solve()
    if not len(first.values):
        return _times(horizon_s, Bound(max(0.0, SAFETY * first.bound), ()))
    fine = _Program(relaxed, buckets, program.refined(first))
    root, solved = fine.branch(effort)
    step_s = SAFETY * max(0.0, first.bound, solved.bound)
    layers = fine.read(root).layers or program.read(first).layers
    return _times(horizon_s, Bound(step_s, layers, fine.read(solved).layers))


def _in_units_of(unit_s: float, problem: Problem) -> Problem:
    """The solver's tolerances are absolute: times are given to it as parts of the horizon."""
    return replace(problem, fixed_s=problem.fixed_s / unit_s, seconds=problem.seconds / unit_s)


def _times(unit_s: float, bound: Bound) -> Bound:
    layers, whole = (
        tuple((seconds * unit_s, count) for seconds, count in some) for some in (bound.layers, bound.whole_layers)
    )
    return Bound(bound.step_s * unit_s, layers, whole)


def _with_few_kinds(problem: Problem) -> Problem:
    """The problem, or where there are many kinds of slots one with the best of each degree: no slower a plan."""
    if len(problem.degree) <= MANY_KINDS:
        return problem
    degrees = np.unique(problem.degree)
    same = [problem.degree == degree for degree in degrees]
    return replace(
        problem,
        degree=degrees,
        capacity=np.array([problem.capacity[kinds].max() for kinds in same]),
        fixed_s=np.array([problem.fixed_s[kinds].min() for kinds in same]),
        seconds=np.stack([problem.seconds[:, kinds].min(axis=1) for kinds in same], axis=1),
        on_kind=degrees[:, None],
        rank_kinds=np.array([len(problem.ranks)]),
    )


def _first_edges(problem: Problem, horizon_s: float) -> NDArray[np.float64]:
    """(J + 1,) from an empty group to the horizon; in between mostly where full groups are."""
    low = float(problem.fixed_s.min())
    fits = problem.lengths[:, None] <= problem.capacity[None, :]
    alone = np.where(fits, problem.fixed_s[None, :] + problem.seconds, np.inf)
    # A micro-batch of short sequences that fills the memory takes about this long.
    full = low + float((alone - problem.fixed_s[None, :]).min(axis=1).sum()) / problem.fewest_micro_batches / len(
        problem.ranks
    )
    high = min(horizon_s, max(2 * full, 1.1 * float(alone[0].min()), 1.1 * float(alone[0][fits[0]][0])))
    middle = np.geomspace(max(low, 0.75 * full), high, INTERVALS - 1) if high > max(low, 0.75 * full) else np.zeros(0)
    # The longest sequences' own times are where the program's choices change: edges stand there.
    own = np.sort(alone[bucket(problem.lengths).first[:SINGLES]][fits[bucket(problem.lengths).first[:SINGLES]]])
    at = np.minimum(np.searchsorted(own, middle), len(own) - 1)
    middle = np.where((own[at] >= middle) & (own[at] < middle * SNAP), own[at], middle)
    return _apart(np.unique(np.concatenate([[low], middle[middle < high], [max(horizon_s, low * (1 + 1e-9))]])))


class _Program:
    """The program of the docstring."""

    def __init__(self, problem: Problem, buckets: Buckets, edges: NDArray[np.float64]) -> None:
        self.problem, self.buckets, self.edges = problem, buckets, edges
        self.program = LinearProgram()
        self._last = buckets.first + buckets.count - 1
        self._alone_s = problem.seconds[self._last]  # (Q, C) of each bucket's shortest
        self._token_s = self._alone_s / buckets.shortest[:, None]
        self._fits = buckets.shortest[:, None] <= problem.capacity[None, :]
        self._most_left, self._left_s = _left_out(problem, buckets)
        self._columns()
        for j in range(len(edges) - 1):
            self._interval(j)
        self._all_placed()

    def solve(self) -> Solved:
        return self.program.solve()

    def branch(self, effort: Effort) -> tuple[Solved, Solved]:
        """What the program says, and what it says with whole numbers where fractions save the most."""
        return self.program.branch(self._weights() if effort.solves > 1 else {}, effort)

    def _weights(self) -> dict[int, float]:
        """Columns that are whole in every plan, and how much a fraction of each may save, about."""
        weights = {self.many: DECIDES, **dict.fromkeys(self._choices(0, KIND), DECIDES)}
        weights |= {z: float(self.edges[j]) for j, z in enumerate(self.z)}
        part = self.problem.degree / len(self.problem.ranks)
        weights |= {n: float(part[c] * self.edges[j]) for (c, j), n in self.n.items() if part[c] >= WIDE}
        for q in range(min(HEIGHTS, len(self.buckets.count))):
            soonest_s = float((self.problem.fixed_s + self._alone_s[q])[self._fits[q]].min())
            weights |= dict.fromkeys(self._choices(q, INTERVAL), soonest_s)
        return weights

    def _choices(self, q: int, of: int) -> list[int]:
        """New columns: in which kind of group, or in which interval, bucket q is; none when it is many sequences."""
        if self.buckets.count[q] > 1:
            return []
        inside: dict[int, list[tuple[int, float]]] = {}
        for key, x in self.x.items():
            if key[0] == q:
                inside.setdefault(key[of], []).append((x, 1.0))
        columns = [self.program.column(0.0, 1.0) for _ in inside]
        for column, terms in zip(columns, inside.values(), strict=True):
            self.program.row([*terms, (column, -1.0)], 0.0, 0.0)
        return columns

    def read(self, solved: Solved) -> Bound:
        if not len(solved.values):
            return Bound(0.0, ())
        counts, seconds = solved.values[self.z], solved.values[self.t]
        used = [(float(s / n), float(n)) for s, n in zip(seconds, counts, strict=True) if n > 1e-6]
        return Bound(0.0, tuple(sorted(used, reverse=True)))

    def refined(self, solved: Solved) -> NDArray[np.float64]:
        """Edges that cut the used intervals around the time that the solution gives them."""
        counts, seconds = solved.values[self.z], solved.values[self.t]
        used = np.nonzero(counts > 1e-6)[0]
        mean = seconds[used] / counts[used]
        before = np.maximum(self.edges[used], mean * (1 - NEAR))
        after = np.minimum(self.edges[used + 1], mean * (1 + NEAR))
        return _apart(np.unique(np.concatenate([self.edges, before, after])))

    def _columns(self) -> None:
        add, problem, intervals = self.program.column, self.problem, range(len(self.edges) - 1)
        self.t = [add(cost=1.0) for _ in intervals]
        self.z = [add() for _ in intervals]
        self.n = {
            (c, j): add()
            for j in intervals
            for c in range(len(problem.degree))
            if problem.fixed_s[c] <= self.edges[j + 1]
        }
        self.y = {key: add() for key in self.n}
        self.w = {key: add() for key in self.n if self._left_s.any()}
        self.x: dict[tuple[int, int, int], int] = {}
        for q, c in zip(*np.nonzero(self._fits), strict=True):
            soonest = problem.fixed_s[c] + self._alone_s[q, c]
            for j in intervals:
                if (c, j) in self.n and soonest <= self.edges[j + 1] * (1 + 1e-12):  # (3)
                    self.x[int(q), int(c), j] = add(0.0, 1.0)  # in units of the bucket's tokens

    def _all_placed(self) -> None:
        where: dict[int, list[int]] = {q: [] for q in range(len(self.buckets.count))}
        for (q, _, _), column in self.x.items():
            where[q].append(column)
        for columns in where.values():
            self.program.row([(column, 1.0) for column in columns], 1.0, 1.0)  # (3)
        if self.w:
            self.program.row([(column, 1.0) for column in self.w.values()], 1.0, 1.0)  # (11)
        self.many = self.program.column(self.problem.fewest_micro_batches, integer=True)
        self.program.row([*((column, 1.0) for column in self.z), (self.many, -1.0)], 0.0, 0.0)  # (2)

    def _interval(self, j: int) -> None:
        low, high = float(self.edges[j]), float(self.edges[j + 1])
        row, kinds = self.program.row, [c for c in range(len(self.problem.degree)) if (c, j) in self.n]
        self._between(self.t[j], self.z[j], low, high)
        for r, many in enumerate(self.problem.rank_kinds):
            stands = [(c, float(self.problem.on_kind[c, r])) for c in kinds if self.problem.on_kind[c, r]]
            idle = [(self.z[j], float(many)), *((self.n[c, j], -on) for c, on in stands)]
            idle_s = [(self.t[j], float(many)), *((self.y[c, j], -on) for c, on in stands)]
            row(idle, 0.0)  # (6)
            row([*idle_s, *((column, -low * by) for column, by in idle)], 0.0)
            row([*idle_s, *((column, -high * by) for column, by in idle)], upper=0.0)
        for c in kinds:
            self._kind(c, j, low, high)
        for q in np.nonzero(self.buckets.count == 1)[0]:
            self._single(int(q), kinds, j, low)

    def _between(self, seconds: int, count: int, low: float, high: float) -> None:
        self.program.row([(seconds, 1.0), (count, -low)], 0.0)  # (2)
        self.program.row([(seconds, 1.0), (count, -high)], upper=0.0)

    def _kind(self, c: int, j: int, low: float, high: float) -> None:
        row, problem, buckets = self.program.row, self.problem, self.buckets
        n, y, fixed_s = self.n[c, j], self.y[c, j], float(problem.fixed_s[c])
        held = [(q, self.x[q, c, j]) for q in range(len(buckets.count)) if (q, c, j) in self.x]
        self._between(y, n, low, high)
        tokens = buckets.tokens
        taken = [*((x, float(self._token_s[q, c] * tokens[q])) for q, x in held), (n, fixed_s), (y, -1.0)]
        if (c, j) in self.w:
            w, most = self.w[c, j], [(x, -float(self._most_left[q])) for q, x in held if self._most_left[q]]
            taken.append((w, float(self._left_s[c])))
            row([(w, 1.0), *most], upper=0.0)  # (11)
        row(taken, upper=0.0)  # (4)
        capacity = float(problem.capacity[c])
        row([*((x, float(tokens[q]) / capacity) for q, x in held), (n, -1.0)], upper=0.0)  # (5)
        large = [(q, x) for q, x in held if 2 * buckets.shortest[q] > capacity]
        slow = [(q, x) for q, x in held if 2 * self._alone_s[q, c] > (high - fixed_s) * (1 + 1e-9)]
        for one_each in (large, slow if slow != large else []):
            if one_each:
                row([*((x, self._fewest(q)) for q, x in one_each), (n, -1.0)], upper=0.0)  # (7), (8)
                later = [(x, -self._fewest(q) * (fixed_s + float(self._alone_s[q, c]) - low)) for q, x in one_each]
                late = [(x, factor) for x, factor in later if factor < 0]
                if late:
                    row([(y, 1.0), (n, -low), *late], 0.0)  # (9)

    def _fewest(self, q: int) -> float:
        """Sequences that a whole bucket's tokens are at least."""
        return float(self.buckets.tokens[q] / self.buckets.longest[q])

    def _single(self, q: int, kinds: list[int], j: int, low: float) -> None:
        held = [(c, self.x[q, c, j]) for c in kinds if (q, c, j) in self.x]
        if not held:
            return
        self.program.row([*((x, 1.0) for _, x in held), (self.z[j], -1.0)], upper=0.0)  # (10)
        alone = [(x, float(self.problem.fixed_s[c] + self._alone_s[q, c]) - low) for c, x in held]
        late = [(x, -by) for x, by in alone if by > 0]
        if late:
            self.program.row([(self.t[j], 1.0), (self.z[j], -low), *late], 0.0)


def _left_out(problem: Problem, buckets: Buckets) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(Q,) the greatest part of all seconds that t_qc leaves out that a bucket's tokens may bring; (C,) these seconds
    in each kind, at least."""
    of = np.repeat(np.arange(len(buckets.count)), buckets.count)
    token_s = problem.seconds / problem.lengths[:, None]
    left_s = problem.seconds - token_s[(buckets.first + buckets.count - 1)[of]] * problem.lengths[:, None]
    counted = left_s[:, 0] > ROUNDING * problem.seconds[:, 0]
    if not counted.any():
        return np.zeros(len(buckets.count)), np.zeros(len(problem.degree))
    total_s = left_s[counted, 0].sum()
    a_token_s = np.zeros(len(buckets.count))
    np.maximum.at(a_token_s, of[counted], left_s[counted, 0] / problem.lengths[counted])
    return a_token_s * buckets.tokens / total_s, total_s * (left_s[counted] / left_s[counted, :1]).min(axis=0)


def _apart(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges at least a thousandth apart; the first and the last stay."""
    kept = [float(edges[0])]
    kept += [float(edge) for edge in edges[1:-1] if edge > kept[-1] * 1.001 and edge * 1.001 < edges[-1]]
    return np.array([*kept, float(edges[-1])])
