"""What the ranks of a replica should send each other, in closed form, while they train: told with a round's figures.

How much that is depends on what only the ranks know: how long documents were, and so how large micro-batches, and what
plan a step ran by. So an engine applies its formula to each step that it runs, and the sums of a round go the way of
its other figures, to `metrics.jsonl`, where the report finds them beside what the ledgers counted. Nothing here looks
at what was sent.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comms.ledger import Kind

PREFIX = "predicted_bytes."
"""Before a kind, in the name of a figure."""


class PredictedTraffic:
    """Bytes that all ranks of a replica together should have sent, by kind, since this was last asked."""

    def __init__(self) -> None:
        self._bytes: Counter[Kind] = Counter()

    def add(self, num_bytes: Mapping[Kind, int]) -> None:
        """Counts what a step takes."""
        self._bytes.update(num_bytes)

    def figures(self) -> dict[str, float]:
        """The sums, as figures; starts over."""
        found = {f"{PREFIX}{kind}": float(num_bytes) for kind, num_bytes in self._bytes.items() if num_bytes}
        self._bytes.clear()
        return found


def ring_sum_bytes(num_bytes: int, ranks: int) -> int:
    """What `ranks` together send to sum up a tensor of `num_bytes` in a ring: twice (N - 1) / N of it each."""
    return 2 * (ranks - 1) * num_bytes


def is_prediction(figure: str) -> bool:
    """Whether a figure of a round is such a sum, and not a matter of health."""
    return figure.startswith(PREFIX)
