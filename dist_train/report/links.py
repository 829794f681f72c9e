"""How fast bytes came over each link, and how fast they might have.

    busy       the union of the intervals in which a transfer was under way: pauses don't count           (1)
    goodput    8 bytes / busy                                                                            (2)
    predicted  8 bytes / limit                                                                           (3)

A link is the path from one member to another; in a simulated run also each member's line, up (to "*") and down (from
"*"), which all its paths share. Receivers' rows count; where a member's ledger is elsewhere, the other end's. Payloads
and snapshots alone are timed one by one: control messages are too small to measure a link by, and of what ranks send
each other the ledger has sums of a round.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from comms.link_plan import Simulation, read_simulation
from dist_train.report.contents import LinkPart
from dist_train.report.ledgers import read_batches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dist_train.run_directory import RunDirectory

    Seconds = NDArray[np.float64]

EVERYBODY = "*"
Link = tuple[str, str]
_TIMED = pa.array(["pseudo_gradient", "state_transfer"])


@dataclass
class Carried:
    """What one link carried: its bytes, and disjoint intervals that hold all its transfers."""

    num_bytes: int = 0
    intervals: list[tuple[Seconds, Seconds]] = field(default_factory=list)

    def add(self, num_bytes: int, begun_s: Seconds, ended_s: Seconds) -> None:
        """Takes in transfers."""
        self.num_bytes += num_bytes
        self.intervals.append(union(begun_s, ended_s))

    @property
    def busy_s(self) -> float:
        """(1)"""
        if not self.intervals:
            return 0.0
        begun_s, ended_s = (np.concatenate(ends) for ends in zip(*self.intervals, strict=True))
        self.intervals = [union(begun_s, ended_s)]
        return float((self.intervals[0][1] - self.intervals[0][0]).sum())


class Carriage:
    """What all links of a run carried, taken in block by block as its ledgers are read."""

    def __init__(self, ledgers: Path) -> None:
        # A stage's ledger is called c.0, and its member c.
        names = {file.stem for file in ledgers.glob("*.jsonl")}
        self._told = pa.array(sorted(names | {name.rpartition(".")[0] for name in names}))
        self.links: defaultdict[Link, Carried] = defaultdict(Carried)
        """By sender and receiver."""

    def take(self, rows: pa.Table) -> None:
        """The rows of a block."""
        is_timed = pc.and_(pc.is_in(rows["kind"], _TIMED), pc.greater(rows["seconds"], 0.0))
        is_whole = pc.and_(pc.is_valid(rows["at_s"]), pc.and_(pc.is_valid(rows["peer"]), pc.is_valid(rows["member"])))
        is_heard = pc.equal(rows["direction"], "received")
        counts = pc.or_(is_heard, pc.invert(pc.is_in(rows["peer"], self._told)))
        timed = rows.filter(pc.fill_null(pc.and_(pc.and_(is_timed, is_whole), counts), fill_value=False))
        if timed.num_rows:
            self._sort_in(timed)

    def _sort_in(self, rows: pa.Table) -> None:
        members, peers = (rows[end].combine_chunks().dictionary_encode() for end in ("member", "peer"))
        is_heard = pc.equal(rows["direction"], "received").to_numpy()
        ended_s, num_bytes = rows["at_s"].to_numpy(), rows["bytes"].to_numpy()
        begun_s = ended_s - rows["seconds"].to_numpy()
        codes = members.indices.to_numpy().astype(np.int64) * len(peers.dictionary) + peers.indices.to_numpy()
        codes = 2 * codes + is_heard
        for code in np.unique(codes):
            here = codes == code
            member, peer = divmod(int(code) // 2, len(peers.dictionary))
            ends = members.dictionary[member].as_py(), peers.dictionary[peer].as_py()
            link = ends[::-1] if code % 2 else ends
            self.links[link].add(int(num_bytes[here].sum()), begun_s[here], ended_s[here])


def union(begun_s: Seconds, ended_s: Seconds) -> tuple[Seconds, Seconds]:
    """Disjoint intervals that cover the same seconds as those given, in order."""
    if not len(begun_s):
        return begun_s, ended_s
    order = np.argsort(begun_s, kind="stable")
    begun_s, until_s = begun_s[order], np.maximum.accumulate(ended_s[order])
    is_first = np.concatenate([[True], begun_s[1:] > until_s[:-1]])
    is_last = np.concatenate([is_first[1:], [True]])
    return begun_s[is_first], until_s[is_last]


def link_parts(directory: RunDirectory, links: dict[Link, Carried]) -> tuple[LinkPart, ...]:
    """A row for each link that carried anything: of a simulated run those that were limited, else all."""
    simulation = _simulation(directory)
    if simulation is None:
        return tuple(_part(link, carried) for link, carried in sorted(links.items()))
    return tuple(_limited(simulation, links))


def collect_links(directory: RunDirectory) -> tuple[LinkPart, ...]:
    """The same, from the ledgers of the run in `directory`."""
    carriage = Carriage(directory.ledgers)
    for block in read_batches(directory.ledgers):
        carriage.take(block)
    return link_parts(directory, carriage.links)


def are_seconds_simulated(directory: RunDirectory) -> bool:
    """Whether the run's replicas were virtual, and so all its seconds worked out."""
    simulation = _simulation(directory)
    return simulation is not None and simulation.rates_by == "virtual"


def _simulation(directory: RunDirectory) -> Simulation | None:
    try:
        return read_simulation(directory.simulation)
    except (OSError, ValueError):
        return None


def _limited(simulation: Simulation, links: dict[Link, Carried]) -> Iterator[LinkPart]:
    asked, by = simulation.asked, simulation.rates_by
    for member, line in sorted(asked.lines.items()):
        up = _together(carried for (sender, _), carried in links.items() if sender == member)
        down = _together(carried for (_, receiver), carried in links.items() if receiver == member)
        if line.up_bits_per_second is not None and up.num_bytes:
            yield _part((member, EVERYBODY), up, line.up_bits_per_second, enforced_by=by)
        if line.down_bits_per_second is not None and down.num_bytes:
            yield _part((EVERYBODY, member), down, line.down_bits_per_second, enforced_by=by)
    for link in sorted(links):
        limit, path = asked.limit_bits_per_second(*link), asked.path(*link)
        if limit is not None or path.latency_s:
            yield _part(link, links[link], limit, path.latency_s, by)


def _together(parts: Iterator[Carried]) -> Carried:
    """What several paths carried, as one line."""
    whole = Carried()
    for part in parts:
        whole.num_bytes += part.num_bytes
        whole.intervals += part.intervals
    return whole


def _part(
    link: Link,
    carried: Carried,
    limit: float | None = None,
    latency_s: float | None = None,
    enforced_by: str = "none",
) -> LinkPart:
    bits, busy_s = 8 * carried.num_bytes, carried.busy_s
    return LinkPart(
        from_=link[0],
        to=link[1],
        limit_bits_per_second=limit,
        latency_s=latency_s,
        enforced_by=enforced_by,
        goodput_bits_per_second=bits / busy_s if busy_s else None,  # (2)
        received_bytes=carried.num_bytes,
        busy_s=busy_s or None,
        predicted_s=bits / limit if limit and bits else None,  # (3)
    )
