"""The doctor's findings as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.doctor.finding import Finding

MARKS = {"ok": ("ok", "green"), "warning": ("!", "yellow"), "problem": ("X", "bold red")}


def table(findings: Sequence[Finding]) -> Table:
    """A row for each finding; what to do stands below its fact."""
    shown = Table(box=None, show_header=False, padding=(0, 1))
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.verdict]
        fact = Text(finding.fact)
        if finding.remedy:
            fact.append(f"\n-> {finding.remedy}", style=style)
        shown.add_row(Text(mark, style=style), Text(finding.check), fact)
    return shown


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    problems = sum(finding.verdict == "problem" for finding in findings)
    warnings = sum(finding.verdict == "warning" for finding in findings)
    if problems:
        return f"{_count(problems, 'problem')} would keep a run from working"
    return f"all is well, with {_count(warnings, 'warning')}" if warnings else "all is well"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
