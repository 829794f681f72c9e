"""The run's join token: a secret that stays at home. Who joins proves that it knows it, and when it did so:

    proof = HMAC-SHA256(token, ["dist-train join 1", run, replica, incarnation, time])

The coordinator makes the same and compares. A proof is taken within CLOCK_SKEW_S of the coordinator's clock, and of one
incarnation of a replica only if it is later than the last that was taken: a recorded one is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from comms.certificates import CertificateError
from comms.errors import BadProof

CLOCK_SKEW_S = 300.0
"""How far the clocks of a run's machines may be apart."""
_LEAST_TOKEN_BYTES = 16
_MOST_TOKEN_BYTES = 4096
_PURPOSE = "dist-train join 1"


def read_token(path: Path) -> bytes:
    """The token in a file, without the white space around it; CertificateError when there is none."""
    try:
        with path.open("rb") as file:
            token = file.read(_MOST_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise CertificateError(
            f"{path}: {error.strerror}; copy the run's token there, or make one: dist-train certs"
        ) from None
    if not _LEAST_TOKEN_BYTES <= len(token) <= _MOST_TOKEN_BYTES:
        raise CertificateError(
            f"{path} holds a token of {len(token)} bytes; it has {_LEAST_TOKEN_BYTES} to {_MOST_TOKEN_BYTES}"
        )
    return token


def prove(token: bytes, run: str, replica: str, incarnation: str, at_s: float) -> bytes:
    """The proof that whoever joins at `at_s`, seconds since 1970, knows the token."""
    said = json.dumps([_PURPOSE, run, replica, incarnation, at_s.hex()])
    return hmac.digest(token, said.encode(), hashlib.sha256)


class Doorkeeper:
    """Checks the proofs of those who join one run. Looks at the token's file each time: it may be replaced."""

    def __init__(self, run: str, token: Path, clock: Callable[[], float] = time.time) -> None:
        self._run = run
        self._path = token
        self._token = read_token(token)  # what can't be read must be found before anybody joins
        self._clock = clock
        self._taken: dict[tuple[str, str], float] = {}

    def admit(self, replica: str, incarnation: str, proof: bytes, proved_at_s: float) -> None:
        """Takes a proof, or says in a BadProof what is wrong with it."""
        with suppress(CertificateError):
            self._token = read_token(self._path)
        expected = prove(self._token, self._run, replica, incarnation, proved_at_s)
        if not hmac.compare_digest(proof, expected):
            raise BadProof(f"replica {replica!r} does not know this run's join token; copy run.token from its operator")
        now_s = self._clock()
        if not abs(now_s - proved_at_s) <= CLOCK_SKEW_S:
            raise BadProof(
                f"the proof of replica {replica!r} is {now_s - proved_at_s:.0f} s old, and at most {CLOCK_SKEW_S:g} s "
                "either way are taken: set its clock, or the coordinator's"
            )
        self._taken = {who: at_s for who, at_s in self._taken.items() if now_s - at_s <= 2 * CLOCK_SKEW_S}
        if proved_at_s <= self._taken.get((replica, incarnation), -1.0):
            raise BadProof(f"this proof of replica {replica!r} was used before, or is older than one that was")
        self._taken[replica, incarnation] = proved_at_s
