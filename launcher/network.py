"""The network that a launch starts its members on: the real one, or a simulated one whose limits somebody enforces.

RealNetwork     what `launch` uses: changes nothing
ShapedNetwork   members shape their own traffic, each in its process (comms.shaper): works everywhere
KernelNetwork   each member in a namespace of its own, limits in the kernel's queues (launcher.star): Linux and root
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from comms.link_plan import LatencyBy, LinkPlan, Simulation
from comms.network import SIMULATION_VARIABLE
from dist_train.run_directory import write_atomically
from launcher.members import COORDINATOR

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Self

    from launcher.star import Star
    from launcher.supervisor import Command


class Network(Protocol):
    """Where members are started, and how they are reached."""

    def equip(self, command: Command) -> Command:
        """The command as it has to be on this network."""
        ...

    def entered(self, member: str) -> AbstractContextManager[None]:
        """Has this thread where `member` is to be started."""
        ...

    def way_in(self, address: str) -> str:
        """Where the launcher itself reaches what the coordinator announced as `address`."""
        ...


class RealNetwork:
    """The network of this machine."""

    def equip(self, command: Command) -> Command:
        """The same."""
        return command

    def entered(self, member: str) -> AbstractContextManager[None]:
        """Here."""
        del member
        return nullcontext()

    def way_in(self, address: str) -> str:
        """The same."""
        return address


class SimulatedNetwork(RealNetwork):
    """What the two simulated ones have in common: the file that tells members, and the plan in force."""

    def __init__(self, file: Path, simulation: Simulation) -> None:
        self._file = file
        self.simulation = simulation
        self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of what only this launch needed."""

    def equip(self, command: Command) -> Command:
        """With the file's name in its environment, and the coordinator at its simulated address."""
        environment = {**command.environment, SIMULATION_VARIABLE: str(self._file)}
        arguments = command.arguments
        if command.member == COORDINATOR:
            arguments += ("--address", self._coordinator_address())
        return replace(command, environment=environment, arguments=arguments)

    def become(self, plan: LinkPlan) -> None:
        """Puts `plan` in force in place of the one before."""
        raise NotImplementedError

    def _coordinator_address(self) -> str:
        return "127.0.0.1:0"

    def _tell(self) -> None:
        write_atomically(self._file, self.simulation.to_json())


class ShapedNetwork(SimulatedNetwork):
    """Token buckets in the members' own processes."""

    def __init__(self, file: Path, asked: LinkPlan) -> None:
        super().__init__(file, Simulation(asked, "token-bucket", "in-process", shaped=asked))

    def become(self, plan: LinkPlan) -> None:
        """Tells the members."""
        self.simulation = replace(self.simulation, shaped=plan)
        self._tell()


class KernelNetwork(SimulatedNetwork):
    """Namespaces and the kernel's queues; where it has no netem, members delay what they send by themselves."""

    def __init__(self, file: Path, asked: LinkPlan, star: Star, *, may_delay: bool) -> None:
        """Takes `star` over; `may_delay`: there are latencies, or will be. NetlinkError when the kernel refuses."""
        from launcher.star import NETWORK  # pyroute2, which is there on Linux only

        self._star = star
        self._members_delay = may_delay and not star.has_netem
        self._stack = ExitStack()
        self._stack.enter_context(star)
        latency_by: LatencyBy = "kernel" if star.has_netem else "in-process"
        simulation = Simulation(asked, "kernel", latency_by, str(NETWORK), shaped=self._left_to_members(asked))
        super().__init__(file, simulation)
        star.become(asked)

    def __exit__(self, *_: object) -> None:
        """Closes the ways in and lets go of the namespaces, which end with the last member."""
        self._stack.close()

    def entered(self, member: str) -> AbstractContextManager[None]:
        """On the member's own machine."""
        return self._star.entered(member)

    def way_in(self, address: str) -> str:
        """A door on the loopback."""
        from launcher.door import Door

        port = int(address.rpartition(":")[2])
        return self._stack.enter_context(Door(lambda: self._star.connect(COORDINATOR, port))).address

    def become(self, plan: LinkPlan) -> None:
        """Changes the queues, and tells the members what is left to them."""
        self._star.become(plan)
        shaped = self._left_to_members(plan)
        if shaped != self.simulation.shaped:
            self.simulation = replace(self.simulation, shaped=shaped)
            self._tell()

    def _left_to_members(self, plan: LinkPlan) -> LinkPlan | None:
        return plan.only_latency() if self._members_delay else None

    def _coordinator_address(self) -> str:
        return f"{self._star.addresses[COORDINATOR]}:0"
