"""The network that this process is on: the real one, or the simulated one that its launcher has put it on.

Like a network card, a simulated link belongs to a process as a whole, so all channels and servers of a process find it
here. A process that nobody has put on a simulated network pays nothing for it.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from comms.link_plan import read_simulation
from comms.shaper import Shaper

SIMULATION_VARIABLE = "DIST_TRAIN_SIMULATION"
"""Names the file in which the launcher keeps the simulated links."""


class _Network:
    shaper: Shaper | None = None
    enclosed: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None


_here = _Network()


def join(member: str) -> None:
    """Puts this process, which is `member`, on the network that the environment names; the real one when it names none.

    OSError or ValueError when the launcher's file can't be read.
    """
    if named := os.environ.get(SIMULATION_VARIABLE):
        simulation = read_simulation(Path(named))
        if simulation.network:
            _here.enclosed = ipaddress.ip_network(simulation.network)
        if simulation.shaped is not None:
            _here.shaper = Shaper(member, Path(named))


def is_enclosed(host: str) -> bool:
    """Whether `host` is on a simulated network, which is joined to nothing outside this machine."""
    try:
        return _here.enclosed is not None and ipaddress.ip_address(host) in _here.enclosed
    except ValueError:
        return False


def way_to(peer: str, address: str) -> str:
    """The address to dial for `peer` at `address`."""
    return address if _here.shaper is None else _here.shaper.dial(peer, address)


def current_shaper() -> Shaper | None:
    """What a server has to listen behind; None on the real network."""
    return _here.shaper
