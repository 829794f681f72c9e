"""The kernel's queues for one interface: a rate for all of it, and a rate for each peer, shared max-min fairly.

    root htb ── line ─┬─ others (ARP)
                      ├─ peer 1 ─┬─ data
                      │          └─ small packets
                      └─ peer 2 ─ …

Each peer is promised an equal share of the line and may borrow what the others leave, up to its path's rate; htb lends
in turns, which is max-min fairness. Small packets go first: acknowledgements that wait behind data make the data of the
other direction wait for them. They count against the same limits.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyroute2.netlink.rtnl.tcmsg import plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyroute2 import IPRoute

    from comms.link_plan import Path

# What the kernel counts has an Ethernet header beside the IP packet of 1500 bytes; a limit counts IP packets alone.
FRAME_BYTES, PACKET_BYTES = 1514, 1500
UNLIMITED_BYTES_PER_S = 12_500_000_000
BURST_S = 0.002
# As deep as a home router's, and never so shallow that one large segment does not fit.
QUEUE_S, LEAST_QUEUE_BYTES = 0.1, 140_000
# Packets below this many bytes are acknowledgements, pings and heartbeats; a power of two, for the filter's mask.
SMALL_BYTES = 128
SOURCE_OFFSET, DESTINATION_OFFSET = 12, 16
ROOT, LINE, OTHERS = 0x10000, 0x10001, 0x10002
ETH_P_IP = 0x0800

# The kernel's bfifo takes what its pfifo takes, and pyroute2 knows only the latter.
plugins.setdefault("bfifo", plugins["pfifo"])


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a part of the traffic."""

    address: str
    path: Path
    delayed: bool = False
    """Whether netem sees to the path's latency here."""


@dataclass(frozen=True)
class Interface:
    """One end of a line, seen from a thread in its namespace."""

    ip: IPRoute
    index: int
    offset: int
    """Of the address in the IP header by which peers are told apart: `DESTINATION_OFFSET` or `SOURCE_OFFSET`."""

    def shape(self, line: float | None, peers: Sequence[Peer]) -> None:
        """Gives it queues for a line of so many bits a second, in place of those that it has."""
        self.unshape()
        if line is None and all(_is_free(peer) for peer in peers):
            return
        self.ip.tc("add", "htb", self.index, ROOT, default=OTHERS & 0xFFFF)
        rate = _bytes_per_s(line)
        self._add_class(LINE, ROOT, (rate, rate))
        self._add_class(OTHERS, LINE, (rate // 10, rate))
        for number, peer in enumerate(peers):
            most = min(rate, _bytes_per_s(peer.path.bits_per_second))
            self._add_peer(ROOT + 0x10 + 3 * number, peer, (min(most, rate // (len(peers) + 1)), most))

    def unshape(self) -> None:
        """Takes our queues away, and what is in them."""
        if any(queue["handle"] == ROOT for queue in self.ip.get_qdiscs(index=self.index)):
            self.ip.tc("del", "htb", self.index, ROOT)

    def _add_peer(self, whole: int, peer: Peer, promised_and_most: tuple[int, int]) -> None:
        promised, most = promised_and_most
        data, small = whole + 1, whole + 2
        self._add_class(whole, LINE, promised_and_most)
        self._add_class(data, whole, (promised * 3 // 4, most), prio=1)
        self._add_class(small, whole, (promised // 4, most))
        for leaf in (data, small):
            self.ip.tc("add", index=self.index, handle=(leaf & 0xFFFF) << 16, parent=leaf, **_queue(peer, most))
        packed = int(ipaddress.IPv4Address(peer.address))
        is_peer = f"0x{packed:08x}/0xffffffff+{self.offset}"
        is_small = f"0x0000/0x{0xFFFF & ~(SMALL_BYTES - 1):04x}+2"
        self._add_filter(small, 1, [is_peer, is_small])
        self._add_filter(data, 2, [is_peer])

    def _add_class(self, handle: int, parent: int, promised_and_most: tuple[int, int], *, prio: int = 0) -> None:
        rate, ceil = promised_and_most
        burst = max(2 * FRAME_BYTES, int(BURST_S * ceil))
        limits = {"rate": max(1000, rate), "ceil": ceil, "burst": burst, "cburst": burst}
        quantum = 2 * FRAME_BYTES
        self.ip.tc("add-class", "htb", self.index, handle, parent=parent, prio=prio, quantum=quantum, **limits)

    def _add_filter(self, target: int, prio: int, keys: list[str]) -> None:
        to = {"parent": ROOT, "prio": prio, "protocol": ETH_P_IP, "target": target}
        self.ip.tc("add-filter", "u32", self.index, keys=keys, **to)


def has_netem(ip: IPRoute, index: int) -> bool:
    """Whether this kernel delays packets; found out by trying."""
    from pyroute2 import NetlinkError  # slow to import

    try:
        ip.tc("add", "netem", index, ROOT, delay=1000)
    except NetlinkError:
        return False
    ip.tc("del", "netem", index, ROOT)
    return True


def _queue(peer: Peer, bytes_per_s: int) -> dict[str, Any]:
    if peer.path.is_cut:
        return {"kind": "pfifo", "limit": 0}  # takes nothing, and tells nobody
    if peer.delayed:
        packets = 1000 + int(bytes_per_s * (peer.path.latency_s + peer.path.jitter_s) / PACKET_BYTES)
        delay_us, jitter_us = (int(1e6 * s) for s in (peer.path.latency_s, peer.path.jitter_s))
        return {"kind": "netem", "delay": delay_us + jitter_us // 2, "jitter": jitter_us // 2, "limit": packets}
    return {"kind": "bfifo", "limit": max(LEAST_QUEUE_BYTES, int(QUEUE_S * bytes_per_s))}


def _is_free(peer: Peer) -> bool:
    return peer.path.bits_per_second is None and not peer.path.is_cut and not peer.delayed


def _bytes_per_s(bits_per_second: float | None) -> int:
    if bits_per_second is None:
        return UNLIMITED_BYTES_PER_S
    return int(bits_per_second / 8 * FRAME_BYTES / PACKET_BYTES)
