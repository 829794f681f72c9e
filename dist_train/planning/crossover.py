"""When an all-gather stops paying: from how many replicas on a relay that adds up is the lighter way.

Symbols: R replicas, P parameters, a payload of p bytes with the share s = k / C of the values.

    all-gather       each downloads  G(R) = (R - 1) p                                              (1)
    relay-aggregate  each downloads the sum, once:  U(R) = P (h(u) + u v) / 8 bytes                (2)
                     u = 1 - (1 - s)^R     share of the places that anybody sent                   (3)
                     h(u)                  binary entropy: bits a parameter for those places       (4)
                     v = 8                 bits of one summed value
    crossover        the least R with U(R) < G(R)                                                  (5)

(3) takes supports for independent; of real pseudo-gradients they nearly are. U never exceeds P (1 + v) / 8, G has no
bound. What goes up is p to a relay, (R - 1) p to the others without one; the relay itself sends R U(R).
"""

from __future__ import annotations

import math

SUMMED_VALUE_BITS = 8
MOST_REPLICAS = 1 << 20


def all_gather_bytes(replicas: int, payload_bytes: float) -> float:
    """What each replica downloads without a relay (1)."""
    return (replicas - 1) * payload_bytes


def aggregate_bytes(replicas: int, parameters: int, share: float) -> float:
    """What each replica downloads from a relay that adds up (2)."""
    union = 1 - (1 - share) ** replicas  # (3)
    places = 0.0 if union in {0.0, 1.0} else -union * math.log2(union) - (1 - union) * math.log2(1 - union)  # (4)
    return parameters * (places + union * SUMMED_VALUE_BITS) / 8


def crossover_replicas(parameters: int, payload_bytes: float, share: float) -> int | None:
    """(5); None when there is none up to MOST_REPLICAS.

    G is a line and U is concave, with U above G at first: they cross once, so halving finds where.
    """

    def aggregate_wins(replicas: int) -> bool:
        return aggregate_bytes(replicas, parameters, share) < all_gather_bytes(replicas, payload_bytes)

    if not aggregate_wins(MOST_REPLICAS):
        return None
    low, high = 1, MOST_REPLICAS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if aggregate_wins(middle) else (middle, high)
    return high
