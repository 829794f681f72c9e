"""How a member of a run is kept apart from everybody else, as the config says it and the files allow it."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path

from comms.certificates import OPERATOR, TOKEN_FILE, CertificateError
from comms.credentials import read_keys
from comms.join_token import read_token
from comms.security import Insecure, Loopback, Security, Tls
from dist_train.config import Config, ConfigError

RENEW_DAYS = 14
"""A certificate that expires sooner is warned of."""
_log = logging.getLogger(__name__)


def security_of(config: Config, member: str) -> Security:
    """What `member` opens its channels with; ConfigError when a file that it needs is missing, broken or expired."""
    match config.security.mode:
        case "loopback":
            return Loopback()
        case "insecure":
            return Insecure()
    certificates = Path(config.security.certificates).expanduser()
    given = config.security.token_file
    token = Path(given).expanduser() if given is not None else certificates / TOKEN_FILE
    try:
        keys = read_keys(certificates, member)
        if member != OPERATOR:
            read_token(token)
    except CertificateError as error:
        raise ConfigError(f'security.mode = "tls", but {error}') from None
    left = keys.expires - datetime.datetime.now(datetime.UTC)
    if left < datetime.timedelta(days=RENEW_DAYS):
        when = f"{keys.expires:%Y-%m-%d %H:%M} UTC"
        _log.warning(
            "the certificate of %s expires on %s: renew it with dist-train certs, also while it runs", member, when
        )
    return Tls(config.run.name, member, certificates, token)
