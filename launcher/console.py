"""Where tables are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = 100
"""Of what is read later, from a file or a pipe, which have no width of their own."""


def console() -> Console:
    """A terminal as wide as it is, or a file in which tables keep together."""
    from rich.console import Console  # which --help and JSON do without

    return Console() if sys.stdout.isatty() else Console(width=COLUMNS)
