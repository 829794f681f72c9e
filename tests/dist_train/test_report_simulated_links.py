"""What a report says of links, by hand."""

from __future__ import annotations

import json
from pathlib import Path

from comms.link_plan import Line, LinkPlan, Simulation
from dist_train.report.simulated_links import Carried, collect_links, goodput_bits_per_second
from dist_train.run_directory import RunDirectory


def test_goodput_counts_the_time_in_which_anything_moved() -> None:
    assert goodput_bits_per_second([]) is None
    alone = Carried(0.0, 2.0, 1000)
    assert goodput_bits_per_second([alone]) == 4000
    together = [alone, Carried(1.0, 3.0, 1000), Carried(1.5, 1.75, 250)]
    assert goodput_bits_per_second(together) == 8 * 2250 / 3
    with_a_pause = [alone, Carried(100.0, 102.0, 1000)]
    assert goodput_bits_per_second(with_a_pause) == 4000


def test_lines_carry_what_their_paths_do(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert collect_links(directory) == ()
    plan = LinkPlan(lines={"a": Line(up_bits_per_second=1e6), "c": Line(down_bits_per_second=5e5)})
    directory.simulation.write_bytes(Simulation(plan, "kernel", "kernel").to_json())
    directory.ledgers.mkdir()
    for member, num_bytes in (("b", 50_000), ("c", 25_000)):
        row = {
            "at_s": 101.0,
            "member": member,
            "peer": "a",
            "direction": "received",
            "bytes": num_bytes,
            "seconds": 1.0,
        }
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
