"""`dist-train report`: a run's report in the form that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_train.report.collect import collect
from dist_train.run_directory import RunDirectory, write_atomically
from launcher.console import console
from launcher.lock import is_locked

if TYPE_CHECKING:
    from pathlib import Path

    from dist_train.report.contents import Report


@dataclass(frozen=True)
class Wanted:
    """The forms of a report; the terminal's when no other is wanted."""

    as_json: bool = False
    as_html: bool = False
    output: Path | None = None
    """Where the page goes instead of the run's directory."""
    ledger: Path | None = None
    tensorboard: Path | None = None

    @property
    def is_file_alone(self) -> bool:
        """Whether there is nothing to print but where files are."""
        return not self.as_json and (self.as_html or self.ledger is not None or self.tensorboard is not None)


def report(run_dir: Path, others: list[Path], wanted: Wanted) -> str:
    """Writes the files that are wanted; what is to be printed. ConfigError where no run is."""
    directory = RunDirectory(run_dir)
    reports = [_collect(path) for path in (run_dir, *others)]
    said = []
    if wanted.as_html:
        said.append(_write_page(reports, wanted.output or directory.page))
    if wanted.ledger is not None:
        from dist_train.report.ledger_export import export_ledger  # a second reader of Arrow

        said.append(f"{export_ledger(directory.ledgers, wanted.ledger)} rows written to {wanted.ledger}")
    if wanted.tensorboard is not None:
        from dist_train.report.tensorboard import write_scalars  # brings in torch

        said.append(f"{write_scalars(directory.metrics, wanted.tensorboard)} rounds written to {wanted.tensorboard}")
    if wanted.as_json:
        return _json(reports)
    return "\n".join(said) if wanted.is_file_alone else _text(reports)


def _collect(path: Path) -> Report:
    return collect(RunDirectory(path), is_running=is_locked(path))


def _write_page(reports: list[Report], path: Path) -> str:
    from dist_train.report.page import render_page  # brings in plotly

    write_atomically(path, render_page(reports[0], reports[1:]).encode())
    return f"the report of {reports[0].run} is in {path}"


def _json(reports: list[Report]) -> str:
    from dist_train.report.compare import comparison_json  # only where there are several

    return reports[0].to_json() if len(reports) == 1 else comparison_json(reports)


def _text(reports: list[Report]) -> str:
    from dist_train.report.compare import render_comparison
    from dist_train.report.terminal import render_terminal

    screen = console()
    with screen.capture() as capture:
        screen.print(render_terminal(reports[0]))
        if len(reports) > 1:
            screen.print()
            screen.print(render_comparison(reports))
    return capture.get().rstrip("\n")
