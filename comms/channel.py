"""gRPC channels and servers as all of our peers open them: the same limits and the same keepalive on both sides.

Plain text stays on this machine unless the config says otherwise (`require_permission`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Literal

import grpc

from comms.errors import CommsError, Unreachable

MOST_MESSAGE_BYTES = 4 * 2**20
_KEEPALIVE_MS = 20_000
_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    # Many routers forget a silent connection after minutes; both ends agree to ping well before that.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_CHANNEL_OPTIONS = (
    *_OPTIONS,
    # Peers are dialled directly: a proxy set for web traffic is none of ours.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    # Without this, a second server on a port in use would silently take half of its connections.
    ("grpc.so_reuseport", 0),
)

SecurityMode = Literal["loopback", "insecure"]


class InsecureAddress(CommsError):  # noqa: N818 - what is wrong with it
    """Plain text would leave this machine, and nobody has said that it may."""


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of `host:port`; InsecureAddress names what does not parse."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise InsecureAddress(f"address {address!r} is not of the form host:port")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_permission(address: str, mode: SecurityMode) -> None:
    """InsecureAddress when plain text to or from `address` would leave this machine unasked."""
    host, _ = host_and_port(address)
    if mode == "loopback" and not is_loopback(host):
        raise InsecureAddress(
            f"{address} is not on this machine, and the run has no encryption: "
            'use a loopback address, or say security.mode = "insecure" on a network that you trust'
        )


def open_channel(address: str, mode: SecurityMode) -> grpc.aio.Channel:
    """A channel to `address`, for the event loop that runs now."""
    require_permission(address, mode)
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def new_server() -> grpc.aio.Server:
    """A server for the event loop that runs now, still without services and port."""
    return grpc.aio.server(options=_SERVER_OPTIONS)


def listen(server: grpc.aio.Server, address: str, mode: SecurityMode) -> str:
    """Lets `server` listen at `address` (port 0: any free one) and returns the address with its port."""
    require_permission(address, mode)
    host, _ = host_and_port(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise Unreachable(f"cannot listen at {address}: the port is in use, or the address is not this machine's")
    return f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
