"""`dist-train join`: adds this machine to a run that is under way. All it must be told is where the coordinator is.

ask the coordinator for the run's config -> a run directory of our own -> a replica in this process
"""

from __future__ import annotations

import json
import logging
import re
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comms.address import host_and_port, is_loopback
from comms.certificates import CertificateError
from comms.credentials import read_keys
from comms.invitation import Invitation, ask
from comms.security import Insecure, Loopback, Security, Tls
from dist_train.config import Config, ConfigError, load, parse
from dist_train.run_directory import RunDirectory, write_atomically
from launcher.members import replica_ids
from launcher.whereabouts import named_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_CONFIG_CHARACTERS = 1_000_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Newcomer:
    """What this machine brings: what the command line says, with its gaps filled in."""

    address: str
    id: str
    device: str
    security: Mapping[str, Any]
    """The [security] section of its config."""
    discovery: Mapping[str, Any] = field(default_factory=dict)
    """The [discovery] section."""

    def security_value(self) -> Security:
        """What it asks the coordinator with; ConfigError when its certificate can't be used."""
        match self.security["mode"]:
            case "tls":
                certificates = Path(self.security["certificates"])
                try:
                    read_keys(certificates, self.id)
                except CertificateError as error:
                    raise ConfigError(f"{error}. The name of a certificate is the id that you join by") from None
                return Tls("", self.id, certificates, Path(self.security.get("token_file", certificates)))
            case "insecure":
                return Insecure()
            case _:
                return Loopback()


def newcomer(
    address: str,
    name: str | None,
    device: str,
    certificates: Path | None,
    token: Path | None,
    *,
    insecure: bool,
    bootstrap: Sequence[str] = (),
) -> Newcomer:
    """What the options come to; ConfigError, BadAddress when they are wrong, or contradict each other or the address.

    Looks the address up when it is a run's name: Unreachable when nobody knows it.
    """
    if certificates is None and token is not None:
        raise ConfigError("--token does nothing without --certificates; give both, or neither")
    if certificates is not None and insecure:
        raise ConfigError("--certificates and --insecure exclude each other; give one")
    own_id = name or _host_name()
    parse({"replica": [{"id": own_id, "device": device}]}, origin="join")
    named = named_run(address, bootstrap)
    is_here = named.is_here if named is not None else is_loopback(host_and_port(address)[0])
    if certificates is None and not insecure and not is_here:
        raise ConfigError(
            f"{address} is another machine: give --certificates DIR (and see docs/security.md), or --insecure if the "
            "run says so"
        )
    security: dict[str, Any] = {"mode": "insecure" if insecure else "loopback"}
    if certificates is not None:
        security = {"mode": "tls", "certificates": str(certificates)}
        if token is not None:
            security["token_file"] = str(token)
    who = Newcomer(address, own_id, device, security)
    if named is None:
        return who
    return replace(who, address=named.locate(who.security_value()), discovery={"bootstrap": list(named.bootstrap)})


def prepare(who: Newcomer, folder: Path | None) -> tuple[Config, RunDirectory]:
    """Asks for the run's config and makes, or opens, the directory that this machine keeps it in."""
    invitation = ask(who.address, who.security_value())
    if invitation.is_over:
        raise ConfigError(f"the run {invitation.run} at {who.address} is over; there is nothing to join")
    if who.id in {holder.replica for holder in invitation.present}:
        raise ConfigError(f"a replica {who.id!r} takes part already; choose another name: --id NAME")
    path = folder if folder is not None else Path("runs") / f"{invitation.run}-{who.id}"
    config = config_of(invitation, who, path)
    replica_ids(config)
    directory = RunDirectory(path)
    if directory.config.is_file() and load(directory.config).digest() != config.digest():
        raise ConfigError(f"{path} keeps another run; give this one another directory: --directory DIR")
    write_atomically(directory.config, config.to_toml().encode())
    return config, directory


def config_of(invitation: Invitation, who: Newcomer, path: Path) -> Config:
    """The run's config as this machine needs it; ConfigError when the invitation holds none, or not what it says."""
    origin = f"the coordinator at {who.address}"
    if len(invitation.config) > MOST_CONFIG_CHARACTERS:
        raise ConfigError(f"{origin} sends a config of {len(invitation.config)} characters")
    try:
        document = json.loads(invitation.config)
        others = [str(name) for name in document.pop("replica")]
        document["run"]["directory"] = str(path)
        most_replicas = int(document["exchange"]["most_replicas"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{origin} sends no config that this version understands ({error!r})") from None
    ids = [*(other for other in others if other != who.id), who.id]
    if len(ids) > most_replicas and who.id not in others:
        raise ConfigError(
            f"{origin} has no room: exchange.most_replicas = {most_replicas}, and {', '.join(others)} take part"
        )
    document["security"], document["discovery"] = dict(who.security), dict(who.discovery)
    document["replica"] = [{"id": name} for name in ids[:-1]] + [{"id": who.id, "device": who.device}]
    config = parse(document, origin=origin)
    if config.digest() != invitation.config_digest:
        raise ConfigError(
            f"{origin} runs {invitation.config_digest[:12]}, and its config here is {config.digest()[:12]}: "
            "another version of dist-train is installed there"
        )
    return config


def _host_name() -> str:
    """This machine's name, as far as it can be a replica's."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).strip("-.")[:64] or "newcomer"
