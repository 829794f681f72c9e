"""What this machine would show of itself: certificates, and how long they are good for."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from comms.certificates import OPERATOR, TOKEN_FILE, CertificateError
from comms.credentials import read_keys
from comms.join_token import read_token
from comms.security import Tls
from dist_train.security import RENEW_DAYS
from launcher.doctor.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from comms.security import Security


def papers(security: Security) -> Finding:
    """Whether others would believe this machine."""
    if not isinstance(security, Tls):
        mode = type(security).__name__.lower()
        return ok("certificates", f"none: security.mode is {mode}, plain text", mode=mode)
    member, folder = security.member, security.certificates
    try:
        keys = read_keys(folder, member)
        if member != OPERATOR:
            read_token(folder / TOKEN_FILE if security.token == folder else security.token)
    except CertificateError as error:
        return problem(
            "certificates", str(error), f"dist-train certs DIR --member {member}, and copy it here", mode="tls"
        )
    left = keys.expires - datetime.datetime.now(datetime.UTC)
    fact = f"that of {member} is good until {keys.expires:%Y-%m-%d}, {left.days} days"
    values = {"mode": "tls", "member": member, "days_left": left.days}
    if left < datetime.timedelta(days=RENEW_DAYS):
        return warning("certificates", fact, "renew it with dist-train certs, also while a run goes on", **values)
    return ok("certificates", fact, **values)
