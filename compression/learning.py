"""How payloads grow in the first rounds of a run: what an adaptive coder finds to learn fades under the error feedback.

With b the bytes after many rounds and b_1 those of the first round, round n has about

    b_n = b - (b - b_1) e^(-(n - 1) / ROUNDS)          b_1 = b (1 - FIRST_SAVING)  for all but the header

Fitted to real pseudo-gradients; docs/experiments.md has the deviations.
"""

from __future__ import annotations

import math

FIRST_SAVING = 0.164
ROUNDS = 6.0


def bytes_in_round(settled_bytes: float, first_bytes: float, round_number: int) -> float:
    """b_n of b and b_1."""
    return settled_bytes - (settled_bytes - first_bytes) * math.exp(-(round_number - 1) / ROUNDS)
