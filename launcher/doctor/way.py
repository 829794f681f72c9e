"""The way to a coordinator and back, as this machine finds it: each step only when those before it went well."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psutil

from comms.address import BadAddress, host_and_port, is_loopback
from comms.agreement import COORDINATOR
from comms.certificates import CertificateError
from comms.channel import InsecureAddress, own_host
from comms.dht import CLOCKS_APART_S
from comms.errors import CommsError, Unreachable
from comms.invitation import ask
from comms.join_token import CLOCK_SKEW_S
from comms.probe import Flow, connection, dialled_back, download, knock, read_clock, upload
from comms.security import Security, Tls
from dist_train.links import rate_text
from dist_train.report.quantities import bytes_text, short_seconds_text
from launcher.doctor.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc

    from comms.agreement import Holder

A_PUBLIC_ADDRESS = "192.0.2.1:9"
"""For the routing table alone: nothing is sent there."""
NOTABLE_CLOCK_S = 1.0
SLOW_BITS_PER_SECOND = 1e6
FAR_S = 0.5


def interface(address: str | None) -> Finding:
    """Which of this machine's addresses others would be told, and why that."""
    towards = address or A_PUBLIC_ADDRESS
    try:
        host = own_host(towards)
    except OSError as error:
        remedy = "is this machine on a network, and has it a route there?"
        return problem("interface", f"there is no way to {towards}: {error.strerror or error}", remedy)
    name = next((n for n, those in psutil.net_if_addrs().items() if any(a.address == host for a in those)), "unknown")
    why = f"the way to {address} leaves there" if address else "the way to the internet leaves there"
    return ok("interface", f"{host} on {name} would be advertised: {why}", host=host, interface=name)


def way(address: str, security: Security, *, discovers: bool) -> Iterator[Finding]:
    """Everything between this machine and the coordinator at `address`."""
    try:
        knock(address)
    except (Unreachable, InsecureAddress) as error:
        yield problem("reachable", str(error), "is that the run's address and port, and does its firewall let you in?")
        return
    try:
        with connection(address, COORDINATOR, security) as channel:
            yield ok("reachable", f"{address} shakes hands as the coordinator", address=address)
            yield from _behind(channel, address, security, discovers=discovers)
    except (Unreachable, BadAddress, InsecureAddress, CertificateError) as error:
        yield problem(
            "reachable", str(error),
            "say what the run says: --certificates DIR for tls (its own authority's), --insecure, or neither",
        )  # fmt: skip


def _behind(channel: grpc.Channel, address: str, security: Security, *, discovers: bool) -> Iterator[Finding]:
    try:
        invitation = ask(address, security)
    except CommsError as error:
        yield problem("run", str(error), "is that a coordinator of dist-train, of this version?")
        return
    route = _route_of(invitation.config)
    fact = f"{invitation.run}: {len(invitation.present)} replicas, route {route}"
    yield ok("run", fact, run=invitation.run, route=route, replicas=[holder.replica for holder in invitation.present])
    yield from _or_problem("clock", lambda: clock(channel, security, discovers=discovers))
    yield from _or_problem("download", lambda: iter([_flow("download", download(channel))]))
    yield from _or_problem("upload", lambda: iter([_flow("upload", upload(channel))]))
    yield from _or_problem("way-back", lambda: iter([_way_back(channel, address, security, route)]))
    if route == "direct":
        for holder in invitation.present:
            yield _peer(holder, security)


def _or_problem(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except CommsError as error:
        yield problem(check, f"could not be measured: {error}", "try again in some seconds")


def _route_of(config: str) -> str:
    try:
        return str(json.loads(config)["exchange"]["route"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def clock(channel: grpc.Channel, security: Security, *, discovers: bool) -> Iterator[Finding]:
    """How far away the coordinator is, and how its clock stands. CommsError when it does not say."""
    reading = read_clock(channel)
    values = {"round_trip_s": reading.round_trip_s, "median_round_trip_s": reading.median_round_trip_s}
    fact = f"{1000 * reading.median_round_trip_s:.1f} ms there and back (fastest {1000 * reading.round_trip_s:.1f} ms)"
    if reading.median_round_trip_s > FAR_S:
        yield warning("latency", fact, "rounds wait for it; a wired line or a nearer coordinator helps", **values)
    else:
        yield ok("latency", fact, **values)
    yield _clock_finding(
        reading.ahead_s, reading.round_trip_s / 2, is_tls=isinstance(security, Tls), discovers=discovers
    )


def _clock_finding(ahead_s: float, uncertain_s: float, *, is_tls: bool, discovers: bool) -> Finding:
    apart_s = abs(ahead_s)
    fact = f"the coordinator's is {short_seconds_text(apart_s)} {'ahead of' if ahead_s > 0 else 'behind'} this one"
    values = {"coordinator_ahead_s": ahead_s, "uncertainty_s": uncertain_s}
    remedy = "let both machines take the time from the network (timedatectl set-ntp true)"
    if is_tls and apart_s > CLOCK_SKEW_S:
        fact += f"; above {CLOCK_SKEW_S:g} s a replica's join is refused"
        return problem("clock", fact, remedy, **values)
    if discovers and apart_s > CLOCKS_APART_S:
        return problem("clock", f"{fact}; above {CLOCKS_APART_S:g} s discovery does not work", remedy, **values)
    if apart_s > NOTABLE_CLOCK_S:
        return warning("clock", fact, remedy, **values)
    return ok("clock", fact, **values)


def _flow(check: str, flow: Flow) -> Finding:
    rate = flow.bits_per_second
    fact = f"{rate_text(rate)} ({bytes_text(flow.num_bytes)} in {short_seconds_text(flow.seconds)})"
    values: dict[str, Any] = {"bits_per_second": rate, "bytes": flow.num_bytes, "seconds": flow.seconds}
    if rate < SLOW_BITS_PER_SECOND:
        return warning(check, fact, "dist-train simulate shows what a run on such a line comes to", **values)
    return ok(check, fact, **values)


def _way_back(channel: grpc.Channel, address: str, security: Security, route: str) -> Finding:
    back = dialled_back(channel, f"{own_host(address)}:0", security)
    if back.reached:
        return ok("way-back", f"the coordinator reaches this machine at {back.address}", address=back.address)
    fact = f"the coordinator can't dial this machine at {back.address}: {back.why}"
    values = {"address": back.address, "why": back.why}
    if route == "relay":
        return ok("way-back", f'{fact}; under exchange.route = "relay" nobody needs to', **values)
    host, seen = own_host(address), host_and_port(back.address)[0]
    nat = f", and it is seen there as {seen}, not {host}: there is a NAT between" if seen != host else ""
    remedy = f'run with exchange.route = "relay", or let others in through the firewall{nat}'
    return problem("way-back", fact, remedy, **values)


def _peer(holder: Holder, security: Security) -> Finding:
    check = f"peer.{holder.replica}"
    if not holder.address:
        return ok(check, f"{holder.replica} serves nothing itself")
    try:
        knock(holder.address)
        with connection(holder.address, holder.replica, security):
            return ok(check, f"{holder.replica} at {holder.address} shakes hands", address=holder.address)
    except (CommsError, OSError) as error:
        here = "" if is_loopback(host_and_port(holder.address)[0]) else 'or run with exchange.route = "relay"'
        remedy = f"its payloads come from others, more slowly; let it be reached, {here}".rstrip(", ")
        return warning(check, f"{holder.replica}: {error}", remedy, address=holder.address)
