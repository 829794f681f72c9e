"""Where a launch shows itself: drawn over in a terminal, line by line in a log, or as JSON lines for a program."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Protocol

import typer
from rich.console import Console
from rich.live import Live

from launcher.progress import Progress, render_live, round_line, tokens_per_s

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Self

    from dist_train.report.metrics import RoundRow


class View(Protocol):
    """What a launch tells whoever looks at it."""

    def __enter__(self) -> Self:
        """Begins to show."""
        ...

    def __exit__(self, *_: object) -> None:
        """Ends what is drawn."""
        ...

    def show(self, progress: Progress) -> None:
        """The present state, about once a second."""
        ...

    def committed(self, progress: Progress, row: RoundRow) -> None:
        """A round was committed; `progress` holds it already."""
        ...

    def say(self, text: str) -> None:
        """One line for a person."""
        ...


class PlainView:
    """A line a round."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        """Nothing: a log has no place for what changes every second."""

    def committed(self, progress: Progress, row: RoundRow) -> None:
        """The round's line."""
        typer.echo(round_line(progress, row))

    def say(self, text: str) -> None:
        """The line."""
        typer.echo(text)


class JsonView(PlainView):
    """One JSON object a committed round on stdout; what is for people goes to stderr."""

    def committed(self, progress: Progress, row: RoundRow) -> None:
        """The round's object."""
        facts = {
            "round": row.round,
            "total_rounds": progress.total_rounds,
            "contributors": row.contributors,
            "theta_digest": row.theta_digest,
            "loss": _finite(row.loss),
            "validation_loss": _finite(row.validation_loss),
            "tokens": row.total_tokens,
            "tokens_per_s": tokens_per_s(row),
            "payload_bytes": row.total_payload_bytes,
            "eta_s": progress.eta_s,
        }
        typer.echo(json.dumps(facts))

    def say(self, text: str) -> None:
        """The line, to stderr."""
        typer.echo(text, err=True)


class LiveView:
    """A picture of the run that is drawn over and goes when the run ends; lines for people scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draws the state."""
        self._live.update(render_live(progress), refresh=True)

    def committed(self, progress: Progress, row: RoundRow) -> None:
        """Nothing: the round is in the next picture."""

    def say(self, text: str) -> None:
        """Prints the line above the picture."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def choose_view(*, as_json: bool) -> AbstractContextManager[View]:
    """The view that suits where stdout goes."""
    if as_json:
        return JsonView()
    console = Console()
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
