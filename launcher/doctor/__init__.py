"""`dist-train doctor`: would a run work on this machine, and between it and a coordinator?

finding     a fact, a verdict, a remedy
machine     versions, devices, memory, open files, disk
papers      certificates
way         interface, reachability both ways, clock, latency, throughput
terminal    the table
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comms.address import host_and_port, is_loopback
from comms.errors import CommsError
from comms.security import Insecure, Loopback, Security, Tls
from dist_train.config import Config, ConfigError
from launcher.doctor.finding import Finding, problem
from launcher.doctor.machine import devices, disk, open_files, versions
from launcher.doctor.papers import papers
from launcher.doctor.way import interface, way
from launcher.whereabouts import NamedRun, named_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class Patient:
    """Who is examined: this machine, as the member that it would be."""

    address: str | None
    """Of the coordinator, or None to look at this machine alone."""
    named: NamedRun | None
    security: Security
    directory: Path
    discovers: bool


def patient(
    address: str | None,
    bootstrap: Sequence[str],
    config: Config | None,
    name: str | None,
    certificates: Path | None,
    *,
    insecure: bool,
) -> Patient:
    """What the options come to; ConfigError, BadAddress when they contradict each other or leave something open."""
    if certificates is not None and insecure:
        raise ConfigError("--certificates and --insecure exclude each other; give one")
    named = named_run(address, bootstrap) if address is not None else None
    if config is not None and address is None and host_and_port(config.exchange.address)[1]:
        address = config.exchange.address
    if address is not None and named is None:
        host_and_port(address)
    directory = Path(config.run.directory if config is not None else "runs")
    discovers = named is not None or (config is not None and config.discovery.is_on)
    security = _security(config, name, certificates, insecure=insecure)
    return Patient(None if named is not None else address, named, security, directory, discovers)


def _security(config: Config | None, name: str | None, certificates: Path | None, *, insecure: bool) -> Security:
    if insecure:
        return Insecure()
    if certificates is None and config is not None:
        if config.security.mode != "tls":
            return Insecure() if config.security.mode == "insecure" else Loopback()
        certificates = Path(config.security.certificates).expanduser()
    if certificates is None:
        return Loopback()
    member = name or _member_here(config, certificates)
    token = config.security.token_file if config is not None else None
    return Tls("", member, certificates, Path(token).expanduser() if token is not None else certificates)


def _member_here(config: Config | None, certificates: Path) -> str:
    """Whose certificate this machine has, as far as that is one replica's."""
    keys = {path.stem for path in certificates.glob("*.key")} - {"ca", "coordinator", "operator"}
    mine = [replica.id for replica in config.replica if replica.id in keys] if config is not None else sorted(keys)
    if not mine:
        raise ConfigError(
            f"{certificates} holds no replica's certificate; make one (dist-train certs), or say --id NAME"
        )
    return mine[0]


def examine(who: Patient) -> Iterator[Finding]:
    """All findings, as they are made; the last ones take seconds."""
    yield from versions(discovers=who.discovers)
    yield from devices()
    yield open_files()
    yield disk(who.directory)
    certificates = papers(who.security)
    yield certificates
    if certificates.verdict == "problem":
        return
    address = who.address
    if who.named is not None:
        try:
            address = who.named.locate(who.security)
        except CommsError as error:
            yield problem("discovery", str(error), "dist-train bootstrap runs such a peer; see docs/discovery.md")
            return
    yield interface(address)
    if address is not None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is told by a finding
        if isinstance(who.security, Loopback) and not is_loopback(host_and_port(address)[0]):
            remedy = "--certificates DIR for a run with tls, or --insecure when the run says so"
            yield problem("reachable", f"{address} is another machine, and plain text does not go there", remedy)
            return
        yield from way(address, who.security, discovers=who.discovers)
