"""What was sent, from the ledgers; and what should have been, in closed form.

A transfer stands in two ledgers, its sender's and its receiver's, so the two directions are summed apart and agree
when nothing was lost. Ledgers are read line by line: a long run's are larger than memory is worth.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dist_train.report.contents import TrafficPart
from dist_train.report.metrics import read_json_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

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


@dataclass(frozen=True)
class LedgerTotals:
    """Bytes by kind, over all members."""

    sent_bytes: Counter[str]
    received_bytes: Counter[str]


def read_ledgers(folder: Path) -> LedgerTotals | None:
    """The totals of every ledger in `folder`; None when nothing was ever counted there."""
    ledgers = sorted(folder.glob("*.jsonl"))
    if not ledgers:
        return None
    by_direction: dict[str, Counter[str]] = {"sent": Counter(), "received": Counter()}
    for ledger in ledgers:
        for row in read_json_lines(ledger):
            kind, num_bytes = row.get("kind"), row.get("bytes")
            if row.get("direction") in by_direction and isinstance(kind, str) and isinstance(num_bytes, int):
                by_direction[row["direction"]][kind] += num_bytes
    return LedgerTotals(sent_bytes=by_direction["sent"], received_bytes=by_direction["received"])


def traffic_parts(totals: LedgerTotals | None, predicted_bytes: int | None) -> tuple[TrafficPart, ...]:
    """A row for each kind; `predicted_bytes` is of the pseudo-gradients. No rows when nothing was counted."""
    if totals is None:
        return ()
    others = sorted((totals.sent_bytes.keys() | totals.received_bytes.keys()) - set(KINDS))
    return tuple(
        TrafficPart(
            kind=kind,
            sent_bytes=totals.sent_bytes[kind],
            received_bytes=totals.received_bytes[kind],
            predicted_bytes=predicted_bytes if kind == PSEUDO_GRADIENT else None,
        )
        for kind in (*KINDS, *others)
    )


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
