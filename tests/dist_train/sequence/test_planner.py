"""Plans: every token in one place, budgets kept, aligned groups, bounds below, and the same plan everywhere."""

import itertools
import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dist_train.sequence.bound import Bound, certify, lower_bound
from dist_train.sequence.cost import REFERENCE_7B, CostModel
from dist_train.sequence.errors import PlanningError
from dist_train.sequence.plan import SequencePlan
from dist_train.sequence.planner import plan_step
from dist_train.sequence.problem import problem_of, sample_of
from dist_train.sequence.ranks import Ranks

PLANNERS = ("adaptive", "best-homogeneous")


def assert_sound(plan: SequencePlan, lengths: list[int], ranks: Ranks, cost: CostModel) -> None:
    held = sorted(k for one in plan.micro_batches for group in one.groups for k in group.sequences)
    assert held == list(range(len(lengths))), "each sequence in exactly one place"
    for micro_batch in plan.micro_batches:
        assert micro_batch.groups
        taken = [rank for group in micro_batch.groups for rank in group.ranks]
        assert len(taken) == len(set(taken)), "groups are disjoint"
        for group in micro_batch.groups:
            degree, first = len(group.ranks), group.ranks[0]
            assert group.sequences
            assert degree in ranks.degrees
            assert first % degree == 0
            assert group.ranks == tuple(range(first, first + degree))
            assert group.ranks[-1] < len(ranks)
            tokens = sum(lengths[k] for k in group.sequences)
            smallest = min(ranks.capacity_tokens[rank] for rank in group.ranks)
            assert math.ceil(tokens / degree) <= smallest, "the budget of each rank is strict"
    assert plan.predicted_s == pytest.approx(cost.step_s(plan, np.array(lengths), ranks), rel=1e-9)
    if plan.planner == "adaptive":
        assert 0 <= plan.lower_bound_s <= plan.predicted_s


costs = st.builds(
    CostModel,
    quadratic_s=st.floats(0, 1e-6),
    linear_s=st.floats(1e-7, 1e-3),
    fixed_s=st.floats(0, 1.0),
    all_to_all_bytes=st.floats(0, 1e6),
    communication_fixed_s=st.floats(0, 0.1),
    bytes_per_second=st.just(((2, 1e9), (4, 3e8))),
)


@st.composite
def steps(draw: st.DrawFn, most_ranks: int = 9, most_sequences: int = 24) -> tuple[list[int], Ranks, CostModel]:
    """Any lengths that fit, on ranks that are equal or not, as many as a power of two or not."""
    count = draw(st.integers(1, most_ranks))
    is_equal = draw(st.booleans())
    capacity = draw(
        st.lists(st.integers(20, 200), min_size=1 if is_equal else count, max_size=1 if is_equal else count)
    )
    speed = draw(st.lists(st.floats(0.2, 4.0), min_size=len(capacity), max_size=len(capacity)))
    times = count if is_equal else 1
    ranks = Ranks(tuple(capacity) * times, tuple(speed) * times)
    longest = max(slot.capacity_tokens for slot in ranks.slots)
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=most_sequences))
    return lengths, ranks, draw(costs)


WITHOUT_NETWORK = CostModel(0.0, 0.001, 1.0, 0.0, 0.0, ())


@settings(max_examples=40, deadline=None)
@given(step=steps(), planner=st.sampled_from(PLANNERS))
@example(
    ([7, 8, 8, 14], Ranks((20,), (1.0,)), WITHOUT_NETWORK), "adaptive"
)  # more than fits in what a search began with
@example(([7, 7, 7, 14], Ranks((20,), (1.0,)), WITHOUT_NETWORK), "adaptive")
def test_every_plan_is_sound(step: tuple[list[int], Ranks, CostModel], planner: str) -> None:
    lengths, ranks, cost = step
    plan = plan_step(lengths, ranks, cost, planner)
    assert_sound(plan, lengths, ranks, cost)


@settings(max_examples=12, deadline=None)
@example(step=([4, 37, 37], Ranks.equal(4, 20), WITHOUT_NETWORK))
@given(step=steps(most_ranks=4, most_sequences=5))
def test_oracle_no_plan_is_below_the_bound_and_ours_is_near_the_best(step: tuple[list[int], Ranks, CostModel]) -> None:
    lengths, ranks, cost = step
    plan = plan_step(lengths, ranks, cost)
    best = best_of_all(tuple(lengths), ranks, cost)
    assert plan.lower_bound_s <= best * (1 + 1e-6)
    assert best <= plan.predicted_s * (1 + 1e-9)
    assert plan.predicted_s <= 1.6 * best
    tight = certify(problem_of(lengths, ranks, cost), plan.predicted_s, Bound(plan.lower_bound_s, ()), 10.0)
    assert plan.lower_bound_s <= tight.step_s <= best * (1 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(step=steps(most_sequences=60))
def test_no_static_degree_is_faster(step: tuple[list[int], Ranks, CostModel]) -> None:
    lengths, ranks, cost = step
    plan = plan_step(lengths, ranks, cost)
    for degree in ranks.degrees:
        with suppress(PlanningError):
            assert plan.predicted_s <= plan_step(lengths, ranks, cost, f"static:{degree}").predicted_s * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(step=steps(most_sequences=60), many=st.integers(1, 4))
def test_no_plan_is_below_the_bound_however_coarse_its_buckets(
    step: tuple[list[int], Ranks, CostModel], many: int
) -> None:
    lengths, ranks, cost = step
    plan = plan_step(lengths, ranks, cost)
    bound = lower_bound(problem_of(lengths, ranks, cost), plan.predicted_s, many=many)
    assert bound.step_s <= plan.predicted_s * (1 + 1e-6)


def best_of_all(lengths: tuple[int, ...], ranks: Ranks, cost: CostModel) -> float:
    """By trying every partition into groups, every slot for each, and every partition into micro-batches."""

    @cache
    def group_s(members: tuple[int, ...]) -> list[tuple[frozenset[int], float]]:
        held = [lengths[k] for k in members]
        return [
            (frozenset(slot.ranks), cost.group_s(held, slot.degree, slot.speed))
            for slot in ranks.slots
            if sum(held) <= slot.capacity_tokens
        ]

    @cache
    def micro_batch_s(members: frozenset[int], free: frozenset[int]) -> float:
        if not members:
            return 0.0
        first, *others = sorted(members)
        best = math.inf
        for size in range(len(others) + 1):
            for chosen in itertools.combinations(others, size):
                for stands_on, seconds in group_s((first, *chosen)):
                    if stands_on <= free and seconds < best:
                        rest = micro_batch_s(members - {first, *chosen}, free - stands_on)
                        best = min(best, max(seconds, rest))
        return best

    @cache
    def step_s(members: frozenset[int]) -> float:
        if not members:
            return 0.0
        first, *others = sorted(members)
        return min(
            micro_batch_s(frozenset({first, *chosen}), frozenset(range(len(ranks))))
            + step_s(members - {first, *chosen})
            for size in range(len(others) + 1)
            for chosen in itertools.combinations(others, size)
        )

    return step_s(frozenset(range(len(lengths))))


@pytest.mark.parametrize("count", [64, 48])
def test_a_long_tailed_step_is_near_its_bound_and_no_worse_than_equal_groups(count: int) -> None:
    random = np.random.default_rng(7)
    lengths = [int(length) for length in np.minimum(random.lognormal(6.9, 1.4, 256), 80_000)]
    ranks = Ranks.equal(count, 6449)
    adaptive = plan_step(lengths, ranks, REFERENCE_7B)
    assert_sound(adaptive, lengths, ranks, REFERENCE_7B)
    assert adaptive.predicted_s / adaptive.lower_bound_s < 1.1
    assert adaptive.predicted_s <= plan_step(lengths, ranks, REFERENCE_7B, "best-homogeneous").predicted_s


def test_a_step_of_many_ranks_is_planned_from_a_sample_of_it() -> None:
    random = np.random.default_rng(11)
    lengths = [int(length) for length in np.minimum(random.lognormal(6.9, 1.4, 600), 80_000)]
    ranks = Ranks.equal(256, 6449)
    problem = problem_of(lengths, ranks, REFERENCE_7B)
    sample = sample_of(problem, REFERENCE_7B, 64)
    assert sample is not None
    assert len(sample.ranks) == 64
    assert len(sample.lengths) == 150
    plan = plan_step(lengths, ranks, REFERENCE_7B)
    assert_sound(plan, lengths, ranks, REFERENCE_7B)
    assert plan.predicted_s / plan.lower_bound_s < 1.25
    assert plan.predicted_s <= plan_step(lengths, ranks, REFERENCE_7B, "best-homogeneous").predicted_s
    one = problem_of([256 * 6449], ranks, REFERENCE_7B)
    assert sample_of(one, REFERENCE_7B, 64) is None, "fewer ranks would not hold it"


def test_static_groups_all_have_the_one_degree() -> None:
    lengths = [900, 500, 100, 100, 20, 1, 1]
    ranks = Ranks.equal(8, 300)
    plan = plan_step(lengths, ranks, REFERENCE_7B, "static:4")
    assert_sound(plan, lengths, ranks, REFERENCE_7B)
    assert {len(group.ranks) for one in plan.micro_batches for group in one.groups} == {4}
    assert plan.planner == "static:4"
    assert math.isnan(plan.lower_bound_s)


def test_one_sequence_that_fills_all_ranks_to_the_last_token() -> None:
    plan = plan_step([8 * 100], Ranks.equal(8, 100), REFERENCE_7B)
    (micro_batch,) = plan.micro_batches
    assert micro_batch.groups[0].ranks == tuple(range(8))


def test_a_slow_rank_gets_less() -> None:
    cost = CostModel(quadratic_s=0.0, linear_s=1e-3, fixed_s=0.1)
    plan = plan_step([10] * 100, Ranks((1000, 1000), (3.0, 1.0)), cost)
    tokens = {group.ranks: 10 * len(group.sequences) for one in plan.micro_batches for group in one.groups}
    assert tokens[0,] == pytest.approx(3 * tokens[1,], rel=0.1)


@pytest.mark.parametrize(
    ("lengths", "planner", "said"),
    [
        ([5, 401, 7], "adaptive", r"sequence 1 of 401 tokens .* holds 400 tokens.* 101 tokens a rank at degree 4"),
        ([5, 201], "static:2", r"sequence 1 of 201 tokens .*degree 2\) holds 200 tokens"),
        ([5, 401], "best-homogeneous", r"sequence 1 of 401 tokens"),
        ([5, 0], "adaptive", r"sequence 1 has 0 tokens"),
        ([], "adaptive", r"at least one sequence"),
        ([5], "static:3", r"there is no planner .static:3.: choose adaptive, best-homogeneous, static:1, static:2"),
        ([5], "fast", r"there is no planner .fast."),
    ],
)
def test_what_cannot_be_planned_is_named(lengths: list[int], planner: str, said: str) -> None:
    with pytest.raises(PlanningError, match=said):
        plan_step(lengths, Ranks.equal(4, 100), REFERENCE_7B, planner)


def test_the_same_lengths_give_the_same_plan_in_every_process() -> None:
    program = (
        "import numpy, json, dataclasses;"
        "from dist_train.sequence.planner import plan_step;"
        "from dist_train.sequence.ranks import Ranks;"
        "from dist_train.sequence.cost import REFERENCE_7B;"
        "lengths = [int(x) for x in numpy.random.default_rng(3).lognormal(7, 1.3, 200)];"
        "plan = plan_step(lengths, Ranks.equal(16, 6449), REFERENCE_7B);"
        "print(json.dumps([dataclasses.asdict(plan)['micro_batches'], plan.predicted_s, plan.lower_bound_s]))"
    )
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, capture_output=True, check=True, text=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert json.loads(runs[0])[0]


def test_planning_needs_no_torch() -> None:
    program = "import sys, dist_train.sequence.planner, dist_train.sequence.calibration; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.full_matrix
@pytest.mark.timeout(900)
def test_no_compiled_loop_leaves_its_arrays(tmp_path: Path) -> None:
    """The properties again, with every index checked: elsewhere a wrong one spoils the memory of the process."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "sound or oracle or sample"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
