"""The committed rounds of a run as TensorBoard scalars: of a finished run at once, of a running one as it goes."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dist_train.config import ConfigError
from dist_train.report.metrics import MetricsTail, RoundRow, read_rounds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

LOOK_EVERY_S = 1.0


def write_scalars(metrics: Path, folder: Path) -> int:
    """Writes every round of `metrics` into `folder`; how many. ConfigError where TensorBoard is not installed."""
    rows = read_rounds(metrics)
    with _writer(folder) as writer:
        for row in rows:
            _write(writer, row)
    return len(rows)


@contextmanager
def following(metrics: Path, folder: Path) -> Iterator[None]:
    """Writes each round as it is committed, in a thread, while inside. ConfigError as above."""
    over = threading.Event()
    # TensorBoard is imported here and not in the thread: other threads may be importing, too.
    with _writer(folder) as writer:
        thread = threading.Thread(target=_follow, args=(writer, metrics, over), name="tensorboard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _follow(writer: SummaryWriter, metrics: Path, over: threading.Event) -> None:
    tail, is_over = MetricsTail(metrics), False
    while not is_over:
        is_over = over.wait(LOOK_EVERY_S)
        for row in tail.new_rows():
            _write(writer, row)
        writer.flush()


def scalars(row: RoundRow) -> Iterator[tuple[str, float]]:
    """Name and value of everything that a round told; its number is their step."""
    named: list[tuple[str, float | None]] = [
        ("loss/train", row.loss),
        ("loss/validation", row.validation_loss),
        ("round/tokens", row.total_tokens),
        ("round/payload_bytes", row.total_payload_bytes),
        ("round/contributors", len(row.contributors)),
        ("round/seconds", row.duration_s),
        *((f"phase_seconds/{r}/{phase}", s) for r, by_phase in row.phase_s.items() for phase, s in by_phase.items()),
        *((f"health/{r}/{name}", value) for r, figures in row.health.items() for name, value in figures.items()),
    ]
    yield from ((name, value) for name, value in named if value is not None and math.isfinite(value))


def _write(writer: SummaryWriter, row: RoundRow) -> None:
    for name, value in scalars(row):
        writer.add_scalar(name, value, row.round, walltime=row.committed_at_s)


def _writer(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            "TensorBoard is not installed; in a clone of dist-train: pip install -c constraints.txt '.[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder))
