"""`dist-train certs`: certificates for the members of a run, and when they expire."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from comms.certificates import OPERATOR, CertificateError, issue
from comms.credentials import read_keys
from dist_train.config import ConfigError
from launcher.members import COORDINATOR, replica_ids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dist_train.config import Config


def members_of(config: Config | None, named: Sequence[str]) -> tuple[str, ...]:
    """Who gets a certificate: those that are named, or else everybody of a run. ConfigError when there is nobody."""
    if named:
        return tuple(dict.fromkeys(named))
    if config is None:
        raise ConfigError("say for whom: --run RUN.toml for all members of a run, or --member NAME, once or more")
    return (COORDINATOR, OPERATOR, *replica_ids(config))


def make(directory: Path, members: Sequence[str], days: int, *, as_json: bool) -> str:
    """Issues certificates, and tells what was written and until when it is good. ConfigError when it can't."""
    try:
        written = issue(directory, members, days)
        expires = {member: read_keys(directory, member).expires for member in members}
    except CertificateError as error:
        raise ConfigError(str(error)) from None
    if as_json:
        moments = {member: moment.isoformat() for member, moment in expires.items()}
        return json.dumps({"directory": str(directory), "written": written, "expires": moments}, indent=2)
    lines = [f"{directory}: {', '.join(written)}"]
    lines += [f"{member}: expires on {moment:%Y-%m-%d %H:%M} UTC" for member, moment in expires.items()]
    lines.append(
        "Copy ca.pem, run.token and a member's own .pem and .key to its machine, over a way that you trust. "
        "ca.key stays here."
    )
    return "\n".join(lines)
