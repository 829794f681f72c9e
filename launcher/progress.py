"""How a running run looks: pure renderers, for a terminal and for a log.

Status says who is doing what now; the committed rounds come from `metrics.jsonl`, because a round may pass unseen
between two looks at the status.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dist_train.report.quantities import bytes_text, count_text, loss_text, seconds_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.console import RenderableType

    from dist_train.report.metrics import RoundRow

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 40
# Rounds that the estimate of the remaining time looks back on.
RECENT_ROUNDS = 6
# Of the last round: who is slow, and who waits for whom.
LAST_PHASES = {"computed": "compute", "waited": "wait", "fetched": "fetch"}
STATE_STYLES = {
    "working": "cyan",
    "reported": "green",
    "acknowledged": "green",
    "silent": "yellow",
    "away": "red",
    "ended": "red",
}


@dataclass(frozen=True)
class MemberProgress:
    """One replica, as the coordinator sees it."""

    replica: str
    state: str
    applied_round: int


@dataclass(frozen=True)
class RunStatus:
    """The coordinator's answer of this second."""

    phase: str = "starting"
    round: int = 0
    members: tuple[MemberProgress, ...] = ()

    def naming(self, replicas: Sequence[str], ended: Collection[str]) -> RunStatus:
        """The same with all of `replicas`: those that the coordinator has not met yet, and those that have ended."""
        met = {member.replica: member for member in self.members}
        everybody = (met.get(replica, MemberProgress(replica, "starting", 0)) for replica in (*met, *replicas))
        shown = {m.replica: replace(m, state="ended") if m.replica in ended else m for m in everybody}
        return replace(self, members=tuple(shown.values()))


@dataclass(frozen=True)
class Progress:
    """All that a view shows."""

    run: str
    total_rounds: int
    replicas: tuple[str, ...] = ()
    """Those that the config names."""
    rounds: tuple[RoundRow, ...] = ()
    """Committed so far, oldest first; perhaps only the recent ones."""
    status: RunStatus = RunStatus()

    @property
    def committed(self) -> int:
        """The last committed round; 0 before the first."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last round, if the rest take as long as the median of the recent ones."""
        recent = self.rounds[-RECENT_ROUNDS:]
        # From commit to commit all is counted; the pause before a resumed run is one among several, and no median.
        periods = [_period_s(before, after) for before, after in pairwise(recent)] or [r.duration_s for r in recent]
        known = [period for period in periods if period is not None]
        return median(known) * (self.total_rounds - self.committed) if known else None


def _period_s(before: RoundRow, after: RoundRow) -> float | None:
    if before.committed_at_s is None or after.committed_at_s is None:
        return after.duration_s
    return (after.committed_at_s - before.committed_at_s) / max(1, after.round - before.round)


def tokens_per_s(row: RoundRow) -> float | None:
    """Tokens of all replicas for each second from the round's opening to its commit."""
    return row.total_tokens / row.duration_s if row.duration_s else None


def waited_for(status: RunStatus) -> tuple[str, ...]:
    """The replicas that keep the others waiting."""
    states = {member.replica: member.state for member in status.members}
    missing = {"silent", "starting"}
    if status.phase == "work" and "reported" in states.values():
        missing.add("working")
    if status.phase == "agree":
        missing.add("reported")
    return tuple(replica for replica, state in states.items() if state in missing)


def sparkline(values: Sequence[float | None], width: int = SPARKLINE_WIDTH) -> str:
    """The last `width` values as bars between their least and greatest; what is not a number is left blank."""
    shown = values[-width:]
    finite = [value for value in shown if value is not None and math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(
        BARS[min(int((value - low) / span * len(BARS)), len(BARS) - 1)]
        if value is not None and math.isfinite(value)
        else " "
        for value in shown
    )


def round_line(progress: Progress, row: RoundRow) -> str:
    """One committed round on one line, for a log."""
    parts = [f"round {row.round}/{progress.total_rounds}", f"loss {loss_text(row.loss)}"]
    if row.validation_loss is not None:
        parts.append(f"val {loss_text(row.validation_loss)}")
    parts.append(f"{count_text(tokens_per_s(row))} tok/s")
    parts.append(f"{bytes_text(row.total_payload_bytes)} payloads")
    if missing := [replica for replica in progress.replicas if replica not in row.contributors]:
        parts.append("without " + ", ".join(missing))
    if not row.agreed:
        parts.append("digests DIFFER")
    parts.append(f"eta {seconds_text(progress.eta_s)}")
    return "  ".join(parts)


def render_live(progress: Progress) -> RenderableType:
    """The whole view, to be drawn over its last one."""
    return Group(_headline(progress), _facts(progress), _members(progress))


def _headline(progress: Progress) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        Text(progress.run, "bold"),
        f"round {progress.committed}/{progress.total_rounds}",
        ProgressBar(total=progress.total_rounds, completed=progress.committed, width=30),
        f"eta {seconds_text(progress.eta_s)}",
    )
    return grid


def _facts(progress: Progress) -> RenderableType:
    if not progress.rounds:
        return Text(f"{progress.status.phase}: no round committed yet", "dim")
    row = progress.rounds[-1]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    loss = loss_text(row.loss)
    if row.validation_loss is not None:
        loss += f"   validation {loss_text(row.validation_loss)}"
    grid.add_row("loss", Text.assemble(loss, "  ", (sparkline([r.loss for r in progress.rounds]), "cyan")))
    grid.add_row("speed", f"{count_text(tokens_per_s(row))} tok/s, {seconds_text(row.duration_s)} a round")
    absent = "".join(f", without {absence.replica}" for absence in row.absent)
    grid.add_row("payloads", f"{bytes_text(row.total_payload_bytes)} in the last round{absent}")
    return grid


def _members(progress: Progress) -> RenderableType:
    status = progress.status
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.add_column("replica")
    table.add_column("state", min_width=12)
    table.add_column("applied", justify="right")
    last = progress.rounds[-1] if progress.rounds else None
    for heading in LAST_PHASES:
        table.add_column(heading, justify="right", style="dim")
    for member in status.members:
        state = Text(member.state, STATE_STYLES.get(member.state, ""))
        phase_s = last.phase_s.get(member.replica, {}) if last is not None else {}
        seconds = (seconds_text(phase_s.get(phase)) for phase in LAST_PHASES.values())
        table.add_row(member.replica, state, f"round {member.applied_round}", *seconds)
    waited = waited_for(status)
    where = f"round {status.round}: {status.phase}" if status.round else status.phase
    table.caption = where + (f", waiting for {', '.join(waited)}" if waited else "")
    return table
