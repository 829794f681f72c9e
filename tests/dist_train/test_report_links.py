"""What a report says of links, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from comms.link_plan import Line, LinkPlan, Simulation
from dist_train.report.links import Carried, collect_links
from dist_train.run_directory import RunDirectory


def carried(*transfers: tuple[float, float, int]) -> Carried:
    """A link with these transfers: begun, ended, bytes."""
    link = Carried()
    for begun_s, ended_s, num_bytes in transfers:
        link.add(num_bytes, np.array([begun_s]), np.array([ended_s]))
    return link


def test_busy_is_the_time_in_which_anything_moved() -> None:
    assert carried().busy_s == 0
    assert carried((0.0, 2.0, 1000)).busy_s == 2
    assert carried((1.0, 3.0, 1000), (0.0, 2.0, 1000), (1.5, 1.75, 250)).busy_s == 3
    assert carried((100.0, 102.0, 1000), (0.0, 2.0, 1000)).busy_s == 4, "a pause does not count"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=30), st.integers(1, 30))
def test_busy_is_the_same_however_transfers_come(spans: list[tuple[int, int]], block: int) -> None:
    moved = {second for begun, seconds in spans for second in range(begun, begun + seconds)}
    link = Carried()
    for start in range(0, len(spans), block):
        begun, seconds = np.array(spans[start : start + block], dtype=np.float64).T
        link.add(1, begun, begun + seconds)
    assert link.busy_s == len(moved)


def test_links_without_limits_are_measured_by_their_receivers(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.ledgers.mkdir()
    rows = [
        # Side by side, 9 s to 10 s and 9.5 s to 10.5 s: 1.5 s for 3000 bytes. A round later 0.5 s for 1000.
        transfer("a", "b", "received", 2000, at_s=10.0),
        transfer("a", "b", "received", 1000, at_s=10.5),
        transfer("a", "b", "received", 1000, at_s=50.0, seconds=0.5),
        transfer("a", "b", "received", 999_999, kind="control", seconds=0.0),
        transfer("a", "b", "received", 999_999, kind="intra_replica"),
        transfer("b", "a", "sent", 4000, at_s=10.0, seconds=9.0),
        transfer("b", "elsewhere", "sent", 800, seconds=2.0),
    ]
    directory.ledger("a").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard, sent = collect_links(directory)
    assert (heard.from_, heard.to, heard.received_bytes, heard.busy_s) == ("b", "a", 4000, 2.0)
    assert heard.goodput_bits_per_second == 8 * 4000 / 2.0
    assert (sent.from_, sent.to, sent.busy_s, sent.predicted_s) == ("b", "elsewhere", 2.0, None)


def transfer(member: str, peer: str, direction: str, num_bytes: int, **others: Any) -> dict[str, Any]:
    known = {"at_s": 100.0, "round": 1, "kind": "pseudo_gradient", "seconds": 1.0}
    return known | {"member": member, "peer": peer, "direction": direction, "bytes": num_bytes} | others


def test_lines_carry_what_their_paths_do(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert collect_links(directory) == ()
    plan = LinkPlan(lines={"a": Line(up_bits_per_second=1e6), "c": Line(down_bits_per_second=5e5)})
    directory.simulation.write_bytes(Simulation(plan, "kernel", "kernel").to_json())
    directory.ledgers.mkdir()
    for member, num_bytes in (("b", 50_000), ("c", 25_000)):
        row = transfer(member, "a", "received", num_bytes, at_s=101.0)
        sent = row | {"direction": "sent"}
        directory.ledger(member).write_text("".join(json.dumps(line) + "\n" for line in (row, sent)))
    links = {(link.from_, link.to): link for link in collect_links(directory)}
    assert {link: (part.limit_bits_per_second, part.goodput_bits_per_second) for link, part in links.items()} == {
        ("a", "*"): (1e6, 600_000.0),
        ("*", "c"): (5e5, 200_000.0),
        ("a", "b"): (1e6, 400_000.0),
        ("a", "c"): (5e5, 200_000.0),
    }
    assert {part.enforced_by for part in links.values()} == {"kernel"}
    assert links["a", "*"].predicted_s == 8 * 75_000 / 1e6
