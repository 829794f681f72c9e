"""Unequal things dealt out so that nobody has much more than another."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def dealt(loads: Sequence[int], hands: int) -> list[list[int]]:
    """Each hand's things, by their index: the largest first, each to the hand that holds least (the first of these).

    Equal wherever it is computed. No hand holds more than 4/3 - 1/(3 hands) of what the best deal's fullest does.
    Paper: Graham 1969, "Bounds on multiprocessing timing anomalies" (LPT).
    """
    held = [(0, hand) for hand in range(hands)]
    found: list[list[int]] = [[] for _ in range(hands)]
    for index in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
        load, hand = held[0]
        heapq.heapreplace(held, (load + loads[index], hand))
        found[hand].append(index)
    return found


def cut(layers: int, stages: int, split: Sequence[int] | None = None) -> list[int]:
    """How many layers each stage has: `split`, or as even as can be, the first ones one more."""
    even, more = divmod(layers, stages)
    return list(split) if split is not None else [even + (stage < more) for stage in range(stages)]
