"""Who is at the other end of a call, by the certificate that it showed, and how it is told that it asks too much."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from comms.certificates import OPERATOR, member_name
from comms.errors import (
    AccessError,
    BadProof,
    Busy,
    NotTheOperator,
    StaleGroup,
    StaleRound,
    TooLarge,
    TooSlow,
    WrongDigest,
    WrongName,
)

_CODES: dict[type[AccessError], grpc.StatusCode] = {
    WrongName: grpc.StatusCode.PERMISSION_DENIED,
    NotTheOperator: grpc.StatusCode.PERMISSION_DENIED,
    BadProof: grpc.StatusCode.UNAUTHENTICATED,
    StaleRound: grpc.StatusCode.FAILED_PRECONDITION,
    StaleGroup: grpc.StatusCode.FAILED_PRECONDITION,
    TooLarge: grpc.StatusCode.OUT_OF_RANGE,
    TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WrongDigest: grpc.StatusCode.DATA_LOSS,
}


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """The member that the caller's certificate names; None over plain text. WrongName when it names no single one."""
    shown = context.auth_context()
    if list(shown.get("transport_security_type", ())) != [b"ssl"]:
        return None
    names = [name.decode(errors="replace") for name in shown.get("x509_subject_alternative_name", ())]
    members = [member_name(name) for name in names]
    if len(members) != 1 or members[0] is None:
        raise WrongName(f"the caller's certificate names {names}, which is no member of a run")
    return members[0]


def require_name(context: grpc.aio.ServicerContext[Any, Any], claimed: str) -> None:
    """WrongName unless the caller is who it says it is."""
    caller = caller_of(context)
    if caller is not None and caller != claimed:
        raise WrongName(f"the caller says that it is {claimed!r}, and its certificate says {caller!r}")


def require_operator(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """NotTheOperator unless the caller is; over plain text nobody can be told apart, and everybody is."""
    caller = caller_of(context)
    if caller not in (None, OPERATOR):
        raise NotTheOperator(f"only the certificate of {OPERATOR!r} may do this, and the caller's is of {caller!r}")


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: AccessError) -> NoReturn:
    """Ends the call with the error's name and message."""
    await context.abort(_CODES[type(error)], f"{type(error).__name__}: {error}")
    raise AssertionError("abort returned")
