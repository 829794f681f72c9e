"""The ledgers of a run, read once and in blocks: a long run's have millions of rows, too many to hold in memory.

Rows are summed up for each (round, member, peer, direction, kind) as they pass; every split that a report shows is a
split of these sums, so all of them add up to the same total.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

BLOCK_BYTES = 16 * 2**20
ROWS = pa.schema(
    [
        ("at_s", pa.float64()),
        ("round", pa.int64()),
        ("member", pa.string()),
        ("peer", pa.string()),
        ("direction", pa.string()),
        ("kind", pa.string()),
        ("bytes", pa.int64()),
        ("seconds", pa.float64()),
        ("fragment", pa.string()),
    ]
)
"""A row of `comms.ledger.Transfer`, as a table has it."""
KEYS = ("round", "member", "peer", "direction", "kind")
_SUMS = (("bytes", "sum"), ("seconds", "sum"), ("transfers", "sum"))
_MOST_PARTIAL_ROWS = 500_000
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int64": (int,),
    "double": (int, float),
}


def read_batches(folder: Path) -> Iterator[pa.Table]:
    """All rows of the ledgers in `folder`, block by block; broken lines and those without bytes are passed over."""
    for ledger in sorted(folder.glob("*.jsonl")):
        with ledger.open("rb") as file:
            for block in _blocks(file):
                table = _parse(block)
                is_whole = pc.and_(
                    pc.is_in(table["direction"], pa.array(["sent", "received"])),
                    pc.and_(pc.is_valid(table["kind"]), pc.is_valid(table["bytes"])),
                )
                yield table.filter(is_whole)


def read_sums(folder: Path, beside: Callable[[pa.Table], None] = lambda _: None) -> pa.Table | None:
    """`KEYS`, bytes, seconds (of all transfers, also of those side by side), transfers: a row for each combination
    that occurs. None when nothing was ever counted in `folder`. `beside` sees the rows, too, block by block."""
    if not any(folder.glob("*.jsonl")):
        return None
    partial: list[pa.Table] = [_sums(_opened(ROWS.empty_table()))]
    for table in read_batches(folder):
        beside(table)
        partial.append(_sums(_opened(table)))
        if sum(part.num_rows for part in partial) > _MOST_PARTIAL_ROWS:
            partial = [_sums(pa.concat_tables(partial))]
    return _sums(pa.concat_tables(partial)).sort_by([(key, "ascending") for key in KEYS])


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Pieces of the file that end where a line ends."""
    rest = b""
    while piece := file.read(BLOCK_BYTES):
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        if whole:
            yield whole + newline
    if rest:
        yield rest + b"\n"  # torn by a crash, or not


def _parse(block: bytes) -> pa.Table:
    options = pj.ParseOptions(explicit_schema=ROWS, unexpected_field_behavior="ignore")
    try:
        return pj.read_json(io.BytesIO(block), pj.ReadOptions(block_size=2**20), options)
    except pa.ArrowInvalid:
        return _parse_carefully(block)


def _parse_carefully(block: bytes) -> pa.Table:
    """The same, line by line, for a block with a line that is not whole, or not a row."""
    rows = []
    for line in block.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            rows.append({field.name: _checked(document.get(field.name), str(field.type)) for field in ROWS})
    return pa.Table.from_pylist(rows, ROWS)


def _checked(value: object, kind: str) -> object:
    is_fitting = isinstance(value, _TYPES[kind]) and not isinstance(value, bool)
    if isinstance(value, int) and abs(value) >= 2**63:
        return None
    return value if is_fitting else None


def _opened(table: pa.Table) -> pa.Table:
    """Rows as sums of one, missing values filled in."""
    filled = {name: pc.fill_null(table[name], "") for name in ("member", "peer", "direction", "kind")}
    return pa.table(
        {
            "round": pc.fill_null(table["round"], 0),
            **filled,
            "bytes": table["bytes"],
            "seconds": pc.fill_null(table["seconds"], 0.0),
            "transfers": pa.repeat(pa.scalar(1, pa.int64()), table.num_rows),
        }
    )


def _sums(table: pa.Table) -> pa.Table:
    grouped = table.group_by(list(KEYS)).aggregate(list(_SUMS))
    return grouped.rename_columns({f"{name}_{function}": name for name, function in _SUMS})
