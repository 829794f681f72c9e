"""Planners that a planning process can import without torch."""

from __future__ import annotations

import os
import signal
import threading

from dist_train.sequence.errors import PlanningError
from dist_train.sequence.plan import Group, MicroBatch, SequencePlan

LONGEST_TOKENS = 100


def one_group(lengths: tuple[int, ...], planner: str) -> SequencePlan:
    """All on rank 0; its solve_s says which process planned. PlanningError beyond LONGEST_TOKENS."""
    if max(lengths) > LONGEST_TOKENS:
        raise PlanningError(f"a sequence of {max(lengths)} tokens needs 2 ranks")
    groups = (Group((0,), tuple(range(len(lengths)))),)
    return SequencePlan((MicroBatch(groups),), sum(lengths), float("nan"), os.getpid(), planner)


def waits_for(event: threading.Event, lengths: tuple[int, ...]) -> SequencePlan:
    """`one_group`, once `event` is set."""
    assert event.wait(60)
    return one_group(lengths, "patient")


def dies(lengths: tuple[int, ...]) -> SequencePlan:
    """Nothing: its process ends."""
    os.kill(os.getpid(), signal.SIGKILL)
    return one_group(lengths, "dead")


def fallback(lengths: tuple[int, ...]) -> SequencePlan:
    """`one_group`, quickly."""
    return one_group(lengths, "fallback")
