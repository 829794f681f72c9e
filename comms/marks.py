"""When things happened in a round, by the coordinator's clock alone.

Members say how long each of their phases took; the coordinator notes when it heard of them. Together they give a
timeline in which no two clocks are compared.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from comms.agreement import Acknowledge, Applied, Report

MOST_ROUNDS = 4
"""Rounds that are remembered: the one that is applied, the open one, and a margin."""


@dataclass
class RoundMarks:
    """Seconds since 1970; of the last word of each kind that counts."""

    opened_at_s: float | None = None
    committed_at_s: float | None = None
    reported_at_s: dict[str, float] = field(default_factory=dict)
    acknowledged_at_s: dict[str, float] = field(default_factory=dict)
    applied_at_s: dict[str, float] = field(default_factory=dict)


class Marks:
    """The marks of the latest rounds; what came before a restart of the coordinator is not known."""

    def __init__(self) -> None:
        self._rounds: defaultdict[int, RoundMarks] = defaultdict(RoundMarks)

    def heard(self, replica: str, message: object, at_s: float) -> None:
        """Notes a word that ends phases; others are passed over."""
        match message:
            case Report(round=number):
                self._rounds[number].reported_at_s[replica] = at_s
            case Acknowledge(round=number):
                self._rounds[number].acknowledged_at_s[replica] = at_s
            case Applied(round=number):
                self._rounds[number].applied_at_s[replica] = at_s

    def opened(self, round_number: int, at_s: float) -> None:
        """Notes when a round began, and forgets those long past; members may have named any number."""
        self._rounds[round_number].opened_at_s = self._rounds[round_number].opened_at_s or at_s
        for number in [n for n in self._rounds if not round_number - MOST_ROUNDS < n <= round_number]:
            del self._rounds[number]

    def committed(self, round_number: int, at_s: float) -> None:
        """Notes when a round was committed."""
        self._rounds[round_number].committed_at_s = at_s

    def of(self, round_number: int) -> RoundMarks:
        """The marks of a round; empty ones when it is not remembered."""
        return self._rounds.get(round_number, RoundMarks())
