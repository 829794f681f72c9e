"""The replicas of a run as what they send each other depends on them: their ranks, and who answers for which fragment.

    one rank       owns and needs every fragment
    several        fragments are dealt out, largest first; gloo carries what they share
    a pipeline     a stage owns its layers; every stage needs the embedding, the first one's own

These are the duties of `dist_train.crew`, told from the config alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_train.dealing import cut, dealt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dist_train.config import Config, ReplicaConfig

EMBED = "embed"


@dataclass(frozen=True)
class Member:
    """One replica."""

    id: str
    owned: tuple[tuple[str, ...], ...]
    """The fragments of each rank."""
    is_pipeline: bool = False
    over_grpc: bool = False
    """Whether its ranks are joined by our channels; else by gloo."""
    stages_elsewhere: int = 0
    """Stages that are on another machine than the first, and so do not find its payloads in the store they share."""

    @property
    def ranks(self) -> int:
        """Processes."""
        return len(self.owned)

    @property
    def more_embeds(self) -> int:
        """How many of its ranks get another replica's embedding, beyond the one that gets each fragment."""
        return self.ranks - 1 if self.is_pipeline else 0


def members_of(config: Config, fragments: Mapping[str, int]) -> dict[str, Member]:
    """The replicas of the config by name; `fragments` are the model's, with their parameters, in its order."""
    return {replica.id: _member(replica, fragments) for replica in config.replica}


def stranger(name: str, fragments: Mapping[str, int]) -> Member:
    """A replica of which the config does not know: one that joined."""
    return Member(name, (tuple(fragments),))


def _member(replica: ReplicaConfig, fragments: Mapping[str, int]) -> Member:
    if replica.pipeline:
        machines = replica.machines
        return Member(
            replica.id,
            _staged(replica, fragments),
            is_pipeline=True,
            over_grpc=replica.channel == "grpc",
            stages_elsewhere=sum(machine != machines[0] for machine in machines),
        )
    names = list(fragments)
    hands = dealt(list(fragments.values()), replica.ranks)
    owned = (tuple(names[index] for index in sorted(hand)) for hand in hands)
    return Member(replica.id, tuple(owned))


def _staged(replica: ReplicaConfig, fragments: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    layers = [name for name in fragments if name.startswith("layer.")]
    split = cut(len(layers), len(replica.pipeline), replica.split)
    starts = [sum(split[:stage]) for stage in range(len(split))]
    hosted = [layers[start : start + count] for start, count in zip(starts, split, strict=True)]
    hosted[0], hosted[-1] = [EMBED, *hosted[0]], [*hosted[-1], "head"]
    return tuple(map(tuple, hosted))
