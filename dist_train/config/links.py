"""The ways between members, for rehearsals: [[link]], [simulate], [[simulate.change]]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dist_train.config.section import Section
from dist_train.config.texts import Identifier, LatencyText, LineText, RateText, TimeText


class LinkConfig(Section):
    """[[link]]: the way between two members, where it is not like all others. `dist-train simulate` enforces it."""

    between: tuple[Identifier, Identifier]
    """Two replicas, or one and "coordinator"."""
    one_way: bool = False
    """Only from the first to the second; both ways when left out."""
    rate: RateText | None = None
    """Such as "50mbit", in each direction; the members' own lines are the only limit when left out."""
    latency: LatencyText | None = None
    """Such as "40ms", each way: an answer takes twice that. [simulate] has the default."""
    jitter: LatencyText | None = None
    """Most that is added to the latency."""


class ChangeConfig(Section):
    """[[simulate.change]]: what happens to links while the run goes on."""

    round: int | None = Field(default=None, ge=1)
    """When this round begins."""
    after: TimeText | None = None
    """Or so long after the start, such as "60s"."""
    lasts: TimeText | None = None
    """After so long all is as before; for good when left out."""
    between: tuple[Identifier, Identifier] | None = None
    """The path between two members."""
    one_way: bool = False
    """Only from the first to the second."""
    member: Identifier | None = None
    """Or a member: its line, and the paths to and from it."""
    rate: RateText | None = None
    """The path's new rate."""
    line: LineText | None = None
    """The member's new line."""
    latency: LatencyText | None = None
    """The path's, or all the member's paths', new latency, each way."""
    jitter: LatencyText | None = None
    """Most that is added to it now."""
    partition: bool = False
    """Nothing gets through."""

    @model_validator(mode="after")
    def _says_when_where_and_what(self) -> ChangeConfig:
        if (self.round is None) == (self.after is None):
            raise ValueError('a change needs either round = 3 or after = "60s"')
        if (self.between is None) == (self.member is None):
            raise ValueError('a change needs either between = ["a", "b"] or member = "a"')
        if self.rate is not None and self.between is None:
            raise ValueError('rate is of a path between two; a member has a line = "10mbit/50mbit"')
        if self.line is not None and self.member is None:
            raise ValueError('line is of a member; a path between two has a rate = "10mbit"')
        if not (self.partition or self.rate or self.line or self.latency or self.jitter):
            raise ValueError("a change changes something: rate, line, latency, jitter or partition = true")
        return self


class SimulateConfig(Section):
    """[simulate]: the links that `dist-train simulate` rehearses the run on. Nothing else reads it."""

    enforce: Literal["auto", "kernel", "token-bucket"] = "auto"
    """`kernel` needs Linux and root; `token-bucket` works everywhere; `auto` takes the kernel where it can."""
    line: LineText | None = None
    """Each member's line: "50mbit" both ways, "10mbit/50mbit" up/down."""
    latency: LatencyText | None = None
    """Of each path, each way."""
    jitter: LatencyText | None = None
    """Most that is added to the latency, evenly spread."""
    lines: dict[Identifier, LineText] = Field(default={})
    """Lines of single members, the coordinator among them."""
    change: tuple[ChangeConfig, ...] = ()
