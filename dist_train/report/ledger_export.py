"""The ledgers of a run as one table for other tools: CSV or Parquet, written as they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.csv
import pyarrow.parquet

from dist_train.config import ConfigError
from dist_train.report.ledgers import ROWS, read_batches

if TYPE_CHECKING:
    from pathlib import Path

WRITERS = {".csv": pyarrow.csv.CSVWriter, ".parquet": pyarrow.parquet.ParquetWriter}


def export_ledger(ledgers: Path, out: Path) -> int:
    """Writes every row of the ledgers in the folder `ledgers` to `out`; how many. ConfigError for another ending."""
    if out.suffix not in WRITERS:
        raise ConfigError(f"{out}: a ledger is written as {' or '.join(WRITERS)}; end the name so")
    out.parent.mkdir(parents=True, exist_ok=True)
    num_rows = 0
    with WRITERS[out.suffix](str(out), ROWS) as writer:
        for table in read_batches(ledgers):
            writer.write_table(table)
            num_rows += table.num_rows
    return num_rows
