"""How well a compressed replica fits in: sums of squares that stages and syncs add up, and the shares they make.

off_subspace_share     |(I - P) W| / |W|          over the global attention outputs and MLP downs it binds    (1)
anchor_drift           |(I - P) dT| / |T|         what a sync added to the embedding outside S                (2)
reconstruction_error   |X - X'| / |X - X_0|       of the stream at boundaries, X_0 the anchors                (3)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass
class Health:
    """Sums of squares; those of several stages are added."""

    off_subspace: float = 0.0
    bound_weights: float = 0.0
    drift: float = 0.0
    anchor: float = 0.0
    lost_stream: float = 0.0
    added_stream: float = 0.0

    def __add__(self, other: Health) -> Health:
        return Health(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def figures(self) -> dict[str, float]:
        """(1) to (3), those of which something is known."""
        shares = {
            "off_subspace_share": (self.off_subspace, self.bound_weights),
            "anchor_drift": (self.drift, self.anchor),
            "reconstruction_error": (self.lost_stream, self.added_stream),
        }
        return {name: math.sqrt(part / whole) for name, (part, whole) in shares.items() if whole > 0}
