"""What the doctor found: a fact, whether it keeps a run from working, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Verdict = Literal["ok", "warning", "problem"]
"""`warning` may hurt, `problem` would keep a run from working."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    """What was looked at: a name that stays the same from version to version."""
    verdict: Verdict
    fact: str
    """One line for a person."""
    remedy: str = ""
    """What to do; empty when all is well."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The fact as numbers and names, units in the keys."""


def ok(check: str, fact: str, **values: Any) -> Finding:
    """All is well."""
    return Finding(check, "ok", fact, "", values)


def warning(check: str, fact: str, remedy: str, **values: Any) -> Finding:
    """It may hurt."""
    return Finding(check, "warning", fact, remedy, values)


def problem(check: str, fact: str, remedy: str, **values: Any) -> Finding:
    """It would keep a run from working."""
    return Finding(check, "problem", fact, remedy, values)


def document(address: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings as `dist-train doctor --json` prints them."""
    is_well = not any(finding.verdict == "problem" for finding in findings)
    return {"ok": is_well, "address": address, "findings": [asdict(finding) for finding in findings]}
