"""What was sent, split as a report shows it; and what should have been, in closed form.

A transfer stands in two ledgers, its sender's and its receiver's, so the two directions are summed apart and agree
when nothing was lost. Every split here is of `ledgers.read_sums`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from dist_train.report.contents import MemberTrafficPart, PairPart, TrafficPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa

PSEUDO_GRADIENT = "pseudo_gradient"
KINDS = (
    PSEUDO_GRADIENT,
    "activation",
    "activation_gradient",
    "sequence_all_to_all",
    "intra_replica",
    "state_transfer",
    "control",
)
SENT, RECEIVED = "sent", "received"


def bytes_by(sums: pa.Table | None, direction: str, *keys: str) -> Counter[Any]:
    """Bytes of one direction, by the tuples of the values of some of the ledger's keys."""
    if sums is None:
        return Counter()
    split = sums.group_by([*keys, "direction"]).aggregate([("bytes", "sum")]).to_pylist()
    return Counter(
        {tuple(row[key] for key in keys): row["bytes_sum"] for row in split if row["direction"] == direction}
    )


def traffic_parts(sums: pa.Table | None, predicted_bytes: Mapping[str, int | None]) -> tuple[TrafficPart, ...]:
    """A row for each kind, with what was predicted of it. No rows when nothing was counted."""
    if sums is None:
        return ()
    sent, received = bytes_by(sums, SENT, "kind"), bytes_by(sums, RECEIVED, "kind")
    others = sorted({kind for (kind,) in (*sent, *received)} - set(KINDS))
    return tuple(
        TrafficPart(
            kind=kind,
            sent_bytes=sent[kind,],
            received_bytes=received[kind,],
            predicted_bytes=predicted_bytes.get(kind),
        )
        for kind in (*KINDS, *others)
    )


def member_parts(sums: pa.Table | None) -> tuple[MemberTrafficPart, ...]:
    """A row for each member and kind that occurs."""
    sent, received = bytes_by(sums, SENT, "member", "kind"), bytes_by(sums, RECEIVED, "member", "kind")
    return tuple(
        MemberTrafficPart(member=key[0], kind=key[1], sent_bytes=sent[key], received_bytes=received[key])
        for key in sorted(sent.keys() | received.keys())
    )


def matrix(sums: pa.Table | None) -> tuple[PairPart, ...]:
    """A row for each pair between which something went; what the ranks of a replica sent each other, from it to it."""
    sent, received = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for (member, peer), num_bytes in bytes_by(sums, SENT, "member", "peer").items():
        sent[member, _replica_of(peer, member)] += num_bytes
    for (member, peer), num_bytes in bytes_by(sums, RECEIVED, "member", "peer").items():
        received[_replica_of(peer, member), member] += num_bytes
    return tuple(
        PairPart(from_=pair[0], to=pair[1], sent_bytes=sent[pair], received_bytes=received[pair])
        for pair in sorted(sent.keys() | received.keys())
    )


def _replica_of(peer: str, member: str) -> str:
    """The member itself, where `peer` is another of its ranks: c.1, c/1."""
    return member if peer.startswith((f"{member}.", f"{member}/")) else peer


def predicted_exchange_bytes(
    contributors: Iterable[int],
    payloads_bytes: Sequence[int],
    route: str,
    stream_bytes: Callable[[int, Literal["get", "put"]], int],
) -> int:
    """What the pseudo-gradients of rounds of so many `contributors` should have cost, sent by anybody.

    R replicas, each with payloads of `payloads_bytes`, whose streams take g = sum of stream_bytes(payload, "get") to
    get and p, likewise, to put: each is got by the R - 1 others, R (R - 1) g, and under `relay` put once before, R p.
    """
    get_bytes = sum(stream_bytes(size, "get") for size in payloads_bytes)
    put_bytes = sum(stream_bytes(size, "put") for size in payloads_bytes) if route == "relay" else 0
    return sum(r * ((r - 1) * get_bytes + put_bytes) for r in contributors)
