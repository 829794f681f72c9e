"""What is done once, before any test: compiling, which takes a minute on a machine that never did it."""

from __future__ import annotations

import pytest

from compression.registry import codec_for, prepare
from dist_train.sequence.cost import REFERENCE_7B
from dist_train.sequence.planner import plan_step
from dist_train.sequence.ranks import Ranks


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compiles here, where no test's timeout runs."""
    if session.config.option.collectonly:
        return
    prepare(codec_for("sparseloco", dense_values="fp32", chunk=4096, k=64, value_bits=2, quantizer="sign-magnitude"))
    plan_step([5, 3, 1], Ranks.equal(2, 8), REFERENCE_7B)
