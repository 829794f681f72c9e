"""A member that is unplugged is cut off from everybody, in both directions, and nobody else is from anybody."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

from benchmarks.chaos.forwarders import Forwarders
from comms.link_plan import LinkPlan, read_simulation

MEMBERS = ("coordinator", "r0", "r1", "newcomer")


def cut_paths(file: Path) -> set[tuple[str, str]]:
    plan = read_simulation(file).shaped
    assert isinstance(plan, LinkPlan), "members have to hold what is cut: no kernel does it for them"
    return {pair for pair in permutations(MEMBERS, 2) if plan.path(*pair).is_cut}


def test_who_is_unplugged_is_cut_off_from_all_and_nobody_else_is(tmp_path: Path) -> None:
    forwarders = Forwarders(tmp_path / "links.json", MEMBERS)
    assert cut_paths(forwarders.file) == set()
    assert not forwarders.plug("r0", into_hub=False)
    assert cut_paths(forwarders.file) == {pair for pair in permutations(MEMBERS, 2) if "r0" in pair}
    assert forwarders.plug("r0", into_hub=True)
    assert cut_paths(forwarders.file) == set()
