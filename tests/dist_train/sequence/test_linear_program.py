"""Cutting at whole columns never claims more than the mixed-integer optimum, and reaches it with enough programs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.sequence.linear_program import Effort, LinearProgram

costs = st.lists(st.integers(1, 9), min_size=3, max_size=3)
rows = st.lists(
    st.tuples(st.lists(st.integers(0, 7), min_size=3, max_size=3), st.integers(1, 20)), min_size=1, max_size=4
)


@settings(max_examples=30, deadline=None)
@given(cost=costs, covers=rows, solves=st.integers(1, 6))
def test_branching_is_a_bound_between_the_relaxed_and_the_whole_optimum(
    cost: list[int], covers: list[tuple[list[int], int]], solves: int
) -> None:
    def program(*, whole: bool) -> tuple[LinearProgram, dict[int, float]]:
        made = LinearProgram()
        columns = [made.column(0.0, 30.0, float(price), integer=whole and i < 2) for i, price in enumerate(cost)]
        for factors, least in covers:
            if any(factors):
                made.row(
                    [(column, float(factor)) for column, factor in zip(columns, factors, strict=True)], float(least)
                )
        return made, dict.fromkeys(columns[:2], 1.0)

    relaxed, weights = program(whole=False)
    exact, _ = program(whole=True)
    best = exact.solve(gap=0.0).bound
    (root, some), (_, every) = (relaxed.branch(weights, Effort(many)) for many in (solves, 500))
    few, many = some.bound, every.bound
    assert abs(relaxed.solve().bound - root.bound) <= 1e-7 * (1 + abs(root.bound))
    assert root.bound <= few + 1e-7
    assert few <= many + 1e-7
    assert abs(many - best) <= 1e-5 * (1 + best)
