"""The cut of a step as published: runs of the sorted lengths, the largest as small as it can be."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sequence_milp import cut


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=9), many=st.integers(1, 4))
def test_no_other_cut_has_a_smaller_largest_run(lengths: list[int], many: int) -> None:
    falling = sorted(lengths, reverse=True)
    found = cut(np.array(lengths), many)
    assert [int(length) for run in found for length in run] == falling
    assert len(found) <= many
    cuts = itertools.combinations(range(1, len(falling)), min(many, len(falling)) - 1)
    runs = ([0, *inner, len(falling)] for inner in cuts)
    best = min(max(sum(falling[i:j]) for i, j in itertools.pairwise(edges)) for edges in runs)
    assert max(int(run.sum()) for run in found) == best
