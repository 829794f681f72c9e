"""Members on one loopback who reach each other through forwarders only, so that each can be cut off from all others.

What namespaces and a pulled cable are where the kernel has them (launcher.star), these are elsewhere: the forwarders of
`dist-train simulate` (comms.shaper), which limit nothing here, and hold everything on a path that is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath

from comms.link_plan import LinkPlan, Path
from launcher.network import ShapedNetwork

_CUT = Path(is_cut=True)


class Forwarders:
    """The paths between the members of one run."""

    def __init__(self, file: FilePath, members: Sequence[str]) -> None:
        """`file` tells the members; DIST_TRAIN_SIMULATION in their environment names it."""
        self.file = file
        self._members = tuple(members)
        self._network = ShapedNetwork(file, LinkPlan())

    def plug(self, member: str, *, into_hub: bool) -> bool:
        """Cuts a member off from all others, or joins it to them again; whether it is joined, as they are told."""
        plan = LinkPlan()
        for other in self._members:
            if other != member and not into_hub:
                plan = plan.with_path(member, other, _CUT).with_path(other, member, _CUT)
        self._network.become(plan)
        shaped = self._network.simulation.shaped
        return shaped is None or not any(path.is_cut for path in shaped.every_path)
