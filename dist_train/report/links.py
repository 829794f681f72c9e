"""How fast bytes came over each link, and how fast they might have.

    busy(round)  = min(last end - first begin, sum of the transfers' seconds)         (1) transfers run side by side
    goodput      = 8 bytes / sum of busy over rounds                                  (2)
    predicted    = 8 bytes / limit + rounds * latency                                 (3)

(1) is at least the time in which something was under way, so that (2) is at most what it was. Receivers' rows count;
where a member's ledger is elsewhere, the other end's. Control messages are too small to measure a link by,
and what is only tallied has no seconds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from dist_train.report.contents import LinkPart

if TYPE_CHECKING:
    import pyarrow as pa

Pair = tuple[str, str]


@dataclass(frozen=True)
class Limit:
    """What one direction of a link was held to, and by what."""

    bits_per_second: float | None = None
    latency_s: float | None = None
    enforced_by: str = "none"


@dataclass
class _Measured:
    num_bytes: int = 0
    busy_s: float = 0.0
    rounds: int = 0


def link_parts(sums: pa.Table | None, limits: dict[Pair, Limit]) -> tuple[LinkPart, ...]:
    """A row for each pair (from, to) that exchanged more than control messages, and for each that is limited."""
    sent, received = _measured(sums, "sent"), _measured(sums, "received")
    measured = sent | received
    return tuple(
        _link(pair, limits.get(pair, Limit()), measured.get(pair, _Measured()))
        for pair in sorted(measured.keys() | limits.keys())
    )


def _link(pair: Pair, limit: Limit, measured: _Measured) -> LinkPart:
    rate, bits = limit.bits_per_second, 8 * measured.num_bytes
    return LinkPart(
        from_=pair[0],
        to=pair[1],
        limit_bits_per_second=rate,
        latency_s=limit.latency_s,
        enforced_by=limit.enforced_by,
        goodput_bits_per_second=bits / measured.busy_s if measured.busy_s else None,  # (2)
        received_bytes=measured.num_bytes,
        busy_s=measured.busy_s or None,
        predicted_s=bits / rate + measured.rounds * (limit.latency_s or 0.0) if rate and bits else None,  # (3)
    )


def _measured(sums: pa.Table | None, direction: str) -> dict[Pair, _Measured]:
    if sums is None:
        return {}
    bulk = pc.and_(pc.equal(sums["direction"], direction), pc.not_equal(sums["kind"], "control"))
    links: defaultdict[Pair, _Measured] = defaultdict(_Measured)
    for row in sums.filter(bulk).to_pylist():
        begin_s, end_s = row["begin_s"], row["end_s"]
        if not row["peer"] or not row["seconds"] or begin_s is None or end_s is None:
            continue  # tallied, and not timed
        member, peer = str(row["member"]), str(row["peer"])
        link = links[(member, peer) if direction == "sent" else (peer, member)]
        link.num_bytes += row["bytes"]
        link.busy_s += max(0.0, min(end_s - begin_s, row["seconds"]))  # (1)
        link.rounds += 1
    return dict(links)
