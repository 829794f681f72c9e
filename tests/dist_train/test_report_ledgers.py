"""Conservation: whatever way a ledger is split, the parts add up to all that was counted; and what broken lines do."""

import json
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comms.ledger import Ledger
from dist_train.config import ConfigError
from dist_train.report.ledger_export import export_ledger
from dist_train.report.ledgers import KEYS, read_sums
from dist_train.report.traffic import bytes_by, matrix, member_parts, traffic_parts


def row(member: str, peer: str, direction: str, num_bytes: int, **others: Any) -> dict[str, Any]:
    known = {"at_s": 100.0, "round": 1, "kind": "pseudo_gradient", "seconds": 1.0, "fragment": "embed"}
    return known | {"member": member, "peer": peer, "direction": direction, "bytes": num_bytes} | others


def write(folder: Path, rows: list[dict[str, Any]], name: str = "a", end: str = "\n") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + end)


names = st.sampled_from(["a", "b", "coordinator"])
kinds = st.sampled_from(["pseudo_gradient", "control", "activation", "something new"])
rows = st.builds(
    row, names, names, st.sampled_from(["sent", "received"]), st.integers(0, 2**40),
    round=st.integers(0, 3), kind=kinds,
)  # fmt: skip


@settings(deadline=None)
@given(counted=st.lists(rows, max_size=40))
def test_every_split_adds_up_to_the_total(tmp_path_factory: pytest.TempPathFactory, counted: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    write(folder, counted)
    sums = read_sums(folder)
    for direction in ("sent", "received"):
        total = sum(r["bytes"] for r in counted if r["direction"] == direction)
        for keys in ((), ("round",), ("kind",), ("member",), ("member", "peer"), KEYS):
            assert bytes_by(sums, direction, *keys).total() == total
        by_part = [traffic_parts(sums, {}), member_parts(sums), matrix(sums)]
        assert all(sum(getattr(part, f"{direction}_bytes") for part in parts) == total for parts in by_part)


def test_what_the_ledger_writes_is_read(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.jsonl", "a", clock=lambda: 12.5) as ledger:
        ledger.transfer(
            round_number=3, peer="b", direction="sent", kind="activation", num_bytes=70, seconds=0.5, fragment="x"
        )
        ledger.control(peer="b", direction="received", num_bytes=5)
    sums = read_sums(tmp_path)
    assert sums is not None
    assert sums.to_pylist() == [
        {"round": 0, "member": "a", "peer": "b", "direction": "received", "kind": "control"}
        | {"bytes": 10, "seconds": 0.0, "transfers": 1},
        {"round": 3, "member": "a", "peer": "b", "direction": "sent", "kind": "activation"}
        | {"bytes": 70, "seconds": 0.5, "transfers": 1},
    ]


@pytest.mark.parametrize(
    "broken",
    [
        '{"member": "a", "bytes": 10',
        '{"at_s": 1, "by{"at_s": 2.0}',
        "[1, 2]",
        json.dumps(row("a", "b", "sent", 5) | {"bytes": "many"}),
        json.dumps(row("a", "b", "sent", 5) | {"bytes": 2**80}),
        json.dumps(row("a", "b", "elsewhere", 5)),
        json.dumps({"direction": "sent", "kind": None, "bytes": 5}),
        "\x00\x01",
    ],
)
def test_a_broken_line_costs_no_other(tmp_path: Path, broken: str) -> None:
    good = json.dumps(row("a", "b", "sent", 7))
    (tmp_path / "a.jsonl").write_text(f"{good}\n{broken}\n{good}\n{broken}")
    assert bytes_by(read_sums(tmp_path), "sent", "peer") == {("b",): 14}


def test_an_empty_ledger_is_not_no_ledger(tmp_path: Path) -> None:
    assert read_sums(tmp_path) is None
    (tmp_path / "a.jsonl").touch()
    assert bytes_by(read_sums(tmp_path), "sent").total() == 0


def test_ledgers_larger_than_a_block_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_train.report.ledgers.BLOCK_BYTES", 1000)
    monkeypatch.setattr("dist_train.report.ledgers._MOST_PARTIAL_ROWS", 3)
    write(tmp_path, [row("a", "b", "sent", n, round=n % 5) for n in range(200)], end="")
    assert bytes_by(read_sums(tmp_path), "sent", "round") == {(r,): sum(range(r, 200, 5)) for r in range(5)}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_every_row_is_in_the_table_for_others(tmp_path: Path, ending: str) -> None:
    counted = [row("a", "b", "sent", n) for n in range(9)]
    write(tmp_path / "ledger", counted, end='\n{"torn')
    out = tmp_path / "tables" / f"ledger.{ending}"
    assert export_ledger(tmp_path / "ledger", out) == 9
    table = (pyarrow.csv.read_csv if ending == "csv" else pyarrow.parquet.read_table)(str(out))
    assert table.to_pylist() == [{key: r[key] for key in table.column_names} for r in counted]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        export_ledger(tmp_path, tmp_path / "ledger.xlsx")
