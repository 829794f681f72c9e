"""Many machines on one: a network namespace for each member, joined by a bridge in a namespace of its own.

    member a [net0]────[veth0] hub: bridge [veth1]────[net0] member b
              up, paths  down

A member's own end holds what it sends (its line's up, its paths), the hub's end what it receives (its line's down).
Nothing leads out: no member sees the network of the real machine, and nothing of it is changed. Whoever starts the
members reaches one of them through a socket that was made inside.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from comms.link_plan import Path
from launcher.namespaces import Namespace
from launcher.queues import DESTINATION_OFFSET, SOURCE_OFFSET, Interface, Peer, has_netem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from typing import Self

    from comms.link_plan import LinkPlan

# Set aside for tests of networks (RFC 2544): nobody's own addresses are hidden by it.
NETWORK = ipaddress.IPv4Network("198.18.0.0/16")
HUB_NAME, MEMBER_NAME = "hub", "net0"
# A sender's large segment must not hold a slow line for long, nor be so small that acknowledgements cost much.
SEGMENT_S, LEAST_SEGMENT_BYTES, MOST_SEGMENT_BYTES = 0.01, 12_000, 65_536


class Star:
    """The namespaces of a run's members. Leaving the `with` block lets go of them."""

    def __init__(self, members: Sequence[str]) -> None:
        """OSError or NetlinkError where the kernel or our rights don't allow it."""
        self._stack = ExitStack()
        self.members = tuple(members)
        self.addresses = {member: str(NETWORK[number + 1]) for number, member in enumerate(members)}
        with ExitStack() as cleanup:
            cleanup.callback(self._stack.close)
            self._hub = self._namespace()
            self._inside = {member: self._namespace() for member in members}
            self.has_netem = self._build()
            cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def entered(self, member: str) -> AbstractContextManager[None]:
        """Has this thread on the member's machine: what it starts there stays there."""
        return self._inside[member].entered()

    def descriptor(self, member: str) -> int:
        """The open file of the member's namespace, for processes that move into it by themselves."""
        return self._inside[member].descriptor

    def plug(self, member: str, *, into_hub: bool) -> bool:
        """Pulls the member's cable out of the hub, or puts it in again; whether it is in, by the kernel's word."""
        with self._hub.entered(), IPRoute() as ip:
            index = _index(ip, _port_name(self.members.index(member)))
            ip.link("set", index=index, state="up" if into_hub else "down")
            return bool(ip.get_links(index)[0]["state"] == "up")

    def connect(self, member: str, port: int) -> socket.socket:
        """A connection to a server of `member`, from its own machine, so that no limit applies. OSError if refused."""
        with self.entered(member):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.connect((self.addresses[member], port))
        except BaseException:
            connection.close()
            raise
        return connection

    def become(self, plan: LinkPlan) -> None:
        """Enforces rates and cuts as in `plan`, and latencies where the kernel can. NetlinkError when it refuses."""
        for member in self.members:
            with self.entered(member), IPRoute() as ip:
                index = _index(ip, MEMBER_NAME)
                ip.link("set", index=index, gso_max_size=_segment_bytes(plan))
                up = plan.line(member).up_bits_per_second
                Interface(ip, index, DESTINATION_OFFSET).shape(up, self._receivers(plan, member))
        with self._hub.entered(), IPRoute() as ip:
            for number, member in enumerate(self.members):
                down = plan.line(member).down_bits_per_second
                Interface(ip, _index(ip, _port_name(number)), SOURCE_OFFSET).shape(down, self._senders(member))

    def _receivers(self, plan: LinkPlan, member: str) -> list[Peer]:
        paths = {other: plan.path(member, other) for other in self.members if other != member}
        return [
            Peer(self.addresses[other], path, delayed=self.has_netem and bool(path.latency_s or path.jitter_s))
            for other, path in paths.items()
        ]

    def _senders(self, member: str) -> list[Peer]:
        return [Peer(self.addresses[other], Path()) for other in self.members if other != member]

    def _namespace(self) -> Namespace:
        namespace = Namespace()
        self._stack.callback(namespace.close)
        return namespace

    def _build(self) -> bool:
        """Makes the bridge, joins every member to it; whether the kernel has netem."""
        with self._hub.entered(), IPRoute() as ip:
            ip.link("add", ifname=HUB_NAME, kind="bridge")
            bridge = _index(ip, HUB_NAME)
            _up(ip, bridge)
            for number, namespace in enumerate(self._inside.values()):
                inside = {"ifname": MEMBER_NAME, "net_ns_fd": namespace.descriptor}
                ip.link("add", ifname=_port_name(number), kind="veth", peer=inside)
                ip.link("set", index=_index(ip, _port_name(number)), master=bridge)
                _up(ip, _index(ip, _port_name(number)))
        for member in self.members:
            with self.entered(member), IPRoute() as ip:
                index = _index(ip, MEMBER_NAME)
                ip.addr("add", index=index, address=self.addresses[member], prefixlen=NETWORK.prefixlen)
                _up(ip, _index(ip, "lo"))
                _up(ip, index)
                netem = has_netem(ip, index)
        return netem


def _segment_bytes(plan: LinkPlan) -> int:
    rates = [line.up_bits_per_second for line in plan.lines.values()]
    rates += [line.down_bits_per_second for line in plan.lines.values()]
    rates += [path.bits_per_second for path in plan.every_path]
    least = min((rate for rate in rates if rate is not None), default=1e12)
    return max(LEAST_SEGMENT_BYTES, min(MOST_SEGMENT_BYTES, int(SEGMENT_S * least / 8)))


def _port_name(number: int) -> str:
    return f"veth{number}"


def _index(ip: IPRoute, name: str) -> int:
    return int(ip.link_lookup(ifname=name)[0])


def _up(ip: IPRoute, index: int) -> None:
    ip.link("set", index=index, state="up")
