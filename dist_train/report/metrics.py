"""The committed rounds of a run, as the coordinator writes them down: `metrics.jsonl`, whole or as it grows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dist_train.predicted_traffic import PREFIX, is_prediction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMPUTE_PHASE = "compute"
SNAPSHOTS = "snapshots_taken"
"""The figure that says how often a replica began with others' parameters."""
EXCHANGE_PHASES = frozenset({"encode", "publish", "wait", "fetch", "decode", "apply"})


class Absence(BaseModel):
    """A replica that a round went without, and why."""

    replica: str
    reason: str = ""


class RoundRow(BaseModel):
    """One committed round. Seconds by replica and phase; bytes and tokens by replica."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    round: int
    contributors: tuple[str, ...] = ()
    theta_digest: str = ""
    agreed: bool = True
    loss: float | None = None
    validation_loss: float | None = None
    tokens: dict[str, int] = {}
    phase_s: dict[str, dict[str, float]] = {}
    payload_bytes: dict[str, int] = {}
    absent: tuple[Absence, ...] = ()
    round_s: float | None = None
    """From opening to commit."""
    opened_at_s: float | None = None
    committed_at_s: float | None = None
    reported_at_s: dict[str, float] = {}
    """When the coordinator heard of a replica's payloads, its acknowledgement, its applying; seconds since 1970."""
    acknowledged_at_s: dict[str, float] = {}
    applied_at_s: dict[str, float] = {}
    told: dict[str, dict[str, float]] = Field(default={}, alias="health")
    """All figures that the replicas told with the round."""

    @property
    def health(self) -> dict[str, dict[str, float]]:
        """Those of them that are of health."""
        kept = {name: {k: v for k, v in figures.items() if not is_prediction(k)} for name, figures in self.told.items()}
        return {name: figures for name, figures in kept.items() if figures}

    @property
    def predicted_bytes(self) -> Counter[str]:
        """By kind, what the ranks of all replicas should have sent each other, as their engines worked it out."""
        found = Counter[str]()
        for figures in self.told.values():
            found.update({k.removeprefix(PREFIX): int(v) for k, v in figures.items() if is_prediction(k)})
        return found

    @cached_property
    def listeners(self) -> tuple[str, ...]:
        """Who took part in the round or applied it."""
        return tuple(sorted({*self.contributors, *self.applied_at_s, *self.phase_s}))

    @property
    def duration_s(self) -> float | None:
        """Seconds from opening to commit, where they are known."""
        if self.round_s is None and self.opened_at_s is not None and self.committed_at_s is not None:
            return self.committed_at_s - self.opened_at_s
        return self.round_s

    @property
    def total_tokens(self) -> int:
        """Tokens trained on in this round by all replicas."""
        return sum(self.tokens.values())

    @property
    def total_payload_bytes(self) -> int:
        """Payload bytes of this round, each replica's counted once however many fetch them."""
        return sum(self.payload_bytes.values())

    def mean_phase_s(self, phases: frozenset[str]) -> float | None:
        """Seconds that a replica spent in `phases`, the mean of those who told."""
        told = [sum(s for phase, s in by_phase.items() if phase in phases) for by_phase in self.phase_s.values()]
        return sum(told) / len(told) if told else None


def read_rounds(path: Path) -> tuple[RoundRow, ...]:
    """The committed rounds in order, the last row of each; none when there is no file yet."""
    rows = {row.round: row for document in read_json_lines(path) if (row := _row(document)) is not None}
    return tuple(rows[number] for number in sorted(rows))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, a line each. A line torn by a crash is passed over; no file has no lines."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if (document := _document(line)) is not None:
                yield document


@dataclass
class MetricsTail:
    """Follows a `metrics.jsonl` that another process is writing."""

    path: Path
    offset_bytes: int = 0

    def new_rows(self) -> list[RoundRow]:
        """The rows whose lines were completed since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset_bytes)
                written = file.read()
        except FileNotFoundError:
            return []
        complete = written[: written.rfind(b"\n") + 1]
        self.offset_bytes += len(complete)
        documents = (_document(line) for line in complete.splitlines())
        return [row for document in documents if document is not None and (row := _row(document)) is not None]


def _document(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _row(document: dict[str, Any]) -> RoundRow | None:
    try:
        return RoundRow.model_validate(document)
    except ValidationError:
        return None
