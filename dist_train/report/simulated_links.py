"""What went over the links of a simulated run against their limits, from its ledgers.

Of each transfer the receiver wrote down when it ended and how long it took. A link's goodput is the payload bytes that
it carried over the time in which it carried any: the union of its transfers' intervals, so that pauses between rounds
don't count. The links are each member's line, up (to "*") and down (from "*"), which all its transfers share, and the
path from each member to each other one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comms.link_plan import Simulation, read_simulation
from dist_train.report.contents import LinkPart
from dist_train.report.metrics import read_json_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dist_train.run_directory import RunDirectory

EVERYBODY = "*"
Link = tuple[str, str]


@dataclass(frozen=True)
class Carried:
    """One transfer, by its receiver's ledger."""

    begun_s: float
    ended_s: float
    num_bytes: int


def collect_links(directory: RunDirectory) -> tuple[LinkPart, ...]:
    """The limited links of the run in `directory`, with what they reached; none when it was not simulated."""
    simulation = _simulation(directory)
    return () if simulation is None else tuple(_parts(simulation, _transfers(directory.ledgers)))


def are_seconds_simulated(directory: RunDirectory) -> bool:
    """Whether the run's replicas were virtual, and so all its seconds worked out."""
    simulation = _simulation(directory)
    return simulation is not None and simulation.rates_by == "virtual"


def _simulation(directory: RunDirectory) -> Simulation | None:
    try:
        return read_simulation(directory.simulation)
    except (OSError, ValueError):
        return None


def goodput_bits_per_second(transfers: Iterable[Carried]) -> float | None:
    """Bits over the seconds in which any of `transfers` was under way; None for none."""
    num_bytes, busy_s, until_s = 0, 0.0, float("-inf")
    for transfer in sorted(transfers, key=lambda carried: carried.begun_s):
        num_bytes += transfer.num_bytes
        busy_s += max(0.0, transfer.ended_s - max(until_s, transfer.begun_s))
        until_s = max(until_s, transfer.ended_s)
    return 8 * num_bytes / busy_s if busy_s > 0 else None


def _parts(simulation: Simulation, carried: dict[Link, list[Carried]]) -> Iterator[LinkPart]:
    asked = simulation.asked
    for member, line in sorted(asked.lines.items()):
        ways = (((member, EVERYBODY), line.up_bits_per_second), ((EVERYBODY, member), line.down_bits_per_second))
        for link, limit in ways:
            if limit is not None and carried[link]:
                yield _part(link, limit, None, simulation, carried)
    for sender, receiver in sorted(link for link in carried if EVERYBODY not in link):
        limit, path = asked.limit_bits_per_second(sender, receiver), asked.path(sender, receiver)
        if limit is not None or path.latency_s:
            yield _part((sender, receiver), limit, path.latency_s, simulation, carried)


def _part(
    link: Link, limit: float | None, latency_s: float | None, simulation: Simulation, carried: dict[Link, list[Carried]]
) -> LinkPart:
    return LinkPart.model_validate(
        {
            "from": link[0],
            "to": link[1],
            "limit_bits_per_second": limit,
            "latency_s": latency_s,
            "enforced_by": simulation.rates_by,
            "goodput_bits_per_second": goodput_bits_per_second(carried[link]),
            "received_bytes": (num_bytes := sum(transfer.num_bytes for transfer in carried[link])),
            "predicted_s": 8 * num_bytes / limit if limit and num_bytes else None,
        }
    )


def _transfers(folder: Path) -> dict[Link, list[Carried]]:
    """What was received, by link; a line carries what any of its paths does."""
    carried: dict[Link, list[Carried]] = defaultdict(list)
    for ledger in sorted(folder.glob("*.jsonl")):
        for row in read_json_lines(ledger):
            crossed = row.get("direction") == "received" and row.get("kind") != "intra_replica"
            if crossed and row.get("seconds"):
                ended_s, receiver, sender = row["at_s"], row["member"], row["peer"]
                transfer = Carried(ended_s - row["seconds"], ended_s, row["bytes"])
                for link in ((sender, receiver), (sender, EVERYBODY), (EVERYBODY, receiver)):
                    carried[link].append(transfer)
    return carried
