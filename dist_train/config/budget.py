"""How many tokens of a document each rank of a replica may hold, and whether its longest document fits on them.

widest group:  the largest power of two up to the ranks, and up to the query heads, of which each rank needs one
budget:        1.25 times a rank's even share of a batch, or what the longest document needs on the widest group
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dist_train.config.replicas import ReplicaConfig
    from dist_train.config.whole import Config

STATIC = "static:"


def tokens_per_rank(config: Config, replica: ReplicaConfig, heads: int | None) -> int:
    """The budget of a rank, in tokens of one forward pass. `heads`: the model's query heads, None while unknown."""
    if config.sequence.max_tokens_per_rank is not None:
        return config.sequence.max_tokens_per_rank
    share = -(-5 * config.inner.batch_tokens // (4 * replica.ranks))
    return max(share, _needed(config, _widest(config, replica, heads)))


def sharing_problems(config: Config, replica: ReplicaConfig, heads: int | None) -> Iterator[str]:
    """Why no plan could be made for the longest document of `replica`: value, rule and remedy."""
    planner = config.sequence.planner
    if replica.ranks == 1 or replica.pipeline or planner == "off":
        return
    degrees = _degrees(replica.ranks, heads)
    if planner.startswith(STATIC) and int(planner.removeprefix(STATIC)) not in degrees:
        allowed = ", ".join(f"{STATIC}{degree}" for degree in degrees)
        has = f"{replica.ranks} ranks" + ("" if heads is None else f" and a model of {heads} heads")
        yield f'sequence.planner = "{planner}" asks for groups that {has} cannot form; choose {allowed}'
        return
    degree, tokens = _widest(config, replica, heads), tokens_per_rank(config, replica, heads)
    if tokens * degree < config.data.sequence_tokens:
        yield (
            f"sequence.max_tokens_per_rank = {tokens} lets a group of {degree} ranks, the largest, hold "
            f"{tokens * degree} tokens, and a document may have data.sequence_tokens = {config.data.sequence_tokens}; "
            f"raise it to {_needed(config, degree)}, or shorten the sequences"
        )


def _degrees(ranks: int, heads: int | None) -> list[int]:
    largest = ranks if heads is None else min(ranks, heads)
    return [2**power for power in range(largest.bit_length())]


def _widest(config: Config, replica: ReplicaConfig, heads: int | None) -> int:
    planner = config.sequence.planner
    return int(planner.removeprefix(STATIC)) if planner.startswith(STATIC) else _degrees(replica.ranks, heads)[-1]


def _needed(config: Config, degree: int) -> int:
    return -(-config.data.sequence_tokens // degree)
