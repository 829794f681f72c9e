"""What the replicas wrote down about a run before its first round: `run.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.learning import bytes_in_round

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class ModelFacts(BaseModel):
    """The model's name and size."""

    name: str | None = None
    parameters: int | None = None
    hidden_size: int | None = None
    """d; the config does not say it of a model that has a `path`."""

    @property
    def default_rank_k(self) -> int | None:
        """Numbers a token that cross a compressed boundary where `rank_k` is left out."""
        return None if self.hidden_size is None else max(1, self.hidden_size // 8)


class FragmentFacts(BaseModel):
    """One fragment: its parameters, the values sent of them, and the predicted size of its payload."""

    parameters: int
    values: int | None = None
    payload_bytes: int | None = None
    first_payload_bytes: int | None = None
    """The same in the first round; as in all others where it is not said."""


class RunFacts(BaseModel):
    """What is known of a run from its model and its codec alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: ModelFacts = ModelFacts()
    fragments: dict[str, FragmentFacts] = {}
    snapshot_bytes: int | None = None
    """The file that a replica begins with when it has to catch up."""
    unigram_entropy_nats: float | None = None
    """Loss of the best model that only knows how often each token occurs."""

    @property
    def exchanged_parameters(self) -> int | None:
        """Parameters of all fragments."""
        return _total(fragment.parameters for fragment in self.fragments.values()) or self.model.parameters

    @property
    def sent_values(self) -> int | None:
        """Values that one contribution holds."""
        return _total(fragment.values for fragment in self.fragments.values())

    def predicted_payloads_bytes(self, round_number: int) -> tuple[int, ...] | None:
        """Predicted payload sizes of one contribution, a fragment each; None when one of them is unknown."""
        sizes = [
            round(bytes_in_round(settled, fragment.first_payload_bytes or settled, round_number))
            for fragment in self.fragments.values()
            if (settled := fragment.payload_bytes) is not None
        ]
        return tuple(sizes) if sizes and len(sizes) == len(self.fragments) else None


def read_facts(path: Path) -> RunFacts:
    """The facts in `path`; empty ones when the run ended before they were written."""
    try:
        return RunFacts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValidationError, ValueError):
        return RunFacts()


def _total(numbers: Iterable[int | None]) -> int | None:
    known = list(numbers)
    return None if not known or None in known else sum(n for n in known if n is not None)
