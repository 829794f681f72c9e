"""What a section of the config is, and who must agree on it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The config, or an override of it, cannot be used. The message is one line: value, rule and remedy."""


class Section(BaseModel):
    """A table of the TOML file. Says where and how something runs, or foretells it: members of one run may differ."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SharedSection(Section):
    """A table that is equal among the members of a run, but for `own_keys`."""

    own_keys: ClassVar[frozenset[str]] = frozenset()

    def shared(self) -> dict[str, Any]:
        """All that must be equal, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.own_keys))


def nearest(name: str, known: Sequence[str]) -> str:
    """The question whether another of the `known` was meant, or which there are."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
