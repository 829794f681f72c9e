"""Payloads are predicted round by round: golden, and consistent with the codec's own prediction."""

import math
from typing import Literal

import pytest

from compression.learning import FIRST_SAVING, ROUNDS, bytes_in_round
from compression.registry import codec_for

SHAPES = {"w": (256, 512), "b": (512,)}


def test_the_first_round_and_the_last() -> None:
    assert bytes_in_round(1000, 840, 1) == 840
    assert bytes_in_round(1000, 840, 7) == pytest.approx(1000 - 160 * math.exp(-6 / ROUNDS))
    assert bytes_in_round(1000, 840, 500) == pytest.approx(1000)


def test_a_learning_codec_says_less_for_early_rounds_and_only_of_its_streams() -> None:
    codec = codec_for("sparseloco", k=64)
    layout = codec.layout(SHAPES)
    settled, rounds = codec.num_bytes(layout), [codec.num_bytes(layout, n) for n in range(1, 60)]
    assert rounds == sorted(rounds)
    assert settled * (1 - FIRST_SAVING) < rounds[0] < settled
    assert rounds[-1] == pytest.approx(settled, abs=2)


@pytest.mark.parametrize("coder", ["rice", "fixed"])
def test_other_codecs_do_not_change(coder: Literal["rice", "fixed"]) -> None:
    codec = codec_for("sparseloco", k=64, coder=coder)
    layout = codec.layout(SHAPES)
    assert codec.num_bytes(layout, 1) == codec.num_bytes(layout)
    dense = codec_for("diloco")
    assert dense.num_bytes(dense.layout(SHAPES), 1) == dense.num_bytes(dense.layout(SHAPES))
