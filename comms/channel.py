"""gRPC channels and servers as all of our peers open them: the same limits and the same keepalive on both sides.

Every one is opened with a `Security`. Plain text stays on this machine unless the config says otherwise; under TLS a
peer is known by the name in its certificate, wherever it is, and both ends take renewed certificates up as they come.
"""

from __future__ import annotations

import math
import resource
import socket
from collections.abc import Sequence

import grpc

from comms import network
from comms.address import host_and_port, is_loopback
from comms.certificates import dns_name
from comms.credentials import KeyFiles, Keys, channel_credentials, read_keys, server_credentials
from comms.errors import CommsError, Unreachable
from comms.security import Loopback, Security, Tls

GOODBYE_S = 1.0
"""How long either end of a conversation waits for the other to end it, too."""
MOST_MESSAGE_BYTES = 4 * 2**20
HANDSHAKE_DEADLINE_S = 10.0
"""Whoever connects and has not shaken hands by then is hung up on."""
MOST_CONNECTIONS = 8192
"""Most that a server holds open, strangers' included; fewer where the system allows fewer open files."""
MOST_CALLS = 4096
"""Most calls that a server answers at once; the conversation of a replica is one."""
MOST_CALLS_A_CONNECTION = 256
"""More are kept waiting at the caller's end."""
_KEEPALIVE_MS = 20_000
_ACKNOWLEDGED_WITHIN_S, _CONNECTED_WITHIN_S = 10.0, 3.0
"""How long a peer's kernel may leave bytes unacknowledged, and one attempt to connect may take, at most."""
_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    # Many routers forget a silent connection after minutes; both ends agree to ping well before that.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_CHANNEL_OPTIONS = (
    *_OPTIONS,
    # Peers are dialled directly: a proxy set for web traffic is none of ours.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.keepalive_timeout_ms", int(1000 * _ACKNOWLEDGED_WITHIN_S)),
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    # Without this, a second server on a port in use would silently take half of its connections.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_DEADLINE_S)),
    ("grpc.max_concurrent_streams", MOST_CALLS_A_CONNECTION),
)


class InsecureAddress(CommsError):
    """Plain text would leave this machine, and nobody has said that it may."""


def own_host(towards: str) -> str:
    """This machine's address on the interface that leads to `towards` (host:port): what other peers can reach, too."""
    host, port = host_and_port(towards)
    if is_loopback(host):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # UDP: asks the routing table, sends nothing
        return str(probe.getsockname()[0])


def require_permission(address: str, security: Security) -> None:
    """InsecureAddress when plain text to or from `address` would leave this machine unasked."""
    host, _ = host_and_port(address)
    if isinstance(security, Loopback) and not (is_loopback(host) or network.is_enclosed(host)):
        raise InsecureAddress(
            f"{address} is not on this machine, and the run has no encryption: use a loopback address, "
            'security.mode = "tls" (see dist-train certs), or say "insecure" on a network that you trust'
        )


def open_channel(address: str, peer: str, security: Security) -> grpc.aio.Channel:
    """A channel to the member `peer` at `address`, for the event loop that runs now."""
    require_permission(address, security)
    keys = read_keys(security.certificates, security.member) if isinstance(security, Tls) else None
    return _open(address, peer, keys)


def open_blocking_channel(address: str, peer: str, security: Security) -> grpc.Channel:
    """The same, for callers without an event loop."""
    require_permission(address, security)
    address = network.way_to(peer, address)
    if not isinstance(security, Tls):
        return grpc.insecure_channel(address, options=_options())
    keys = read_keys(security.certificates, security.member)
    return grpc.secure_channel(address, channel_credentials(keys), options=_options_for(peer))


def _open(address: str, peer: str, keys: Keys | None, silence_s: float = math.inf) -> grpc.aio.Channel:
    address = network.way_to(peer, address)
    if keys is None:
        return grpc.aio.insecure_channel(address, options=_options(silence_s))
    return grpc.aio.secure_channel(address, channel_credentials(keys), options=_options_for(peer, silence_s))


def _options(silence_s: float = math.inf) -> Sequence[tuple[str, int | str]]:
    """`silence_s`: how long a peer that lives may be silent. Bytes that nobody acknowledges for so long break the
    connection, so that a line that comes back is found by a new one: on the old one TCP's pauses have doubled by then.
    """
    acknowledged_s, connected_s = min(_ACKNOWLEDGED_WITHIN_S, silence_s), min(_CONNECTED_WITHIN_S, 2 * silence_s)
    return (
        *_CHANNEL_OPTIONS,
        ("grpc.keepalive_timeout_ms", int(1000 * acknowledged_s)),  # TCP_USER_TIMEOUT, too
        # By its name a pause, in truth how long one attempt to connect may take: TLS to the other side of the earth,
        # over a line that is busy, needs its seconds. Whoever is refused tries again after the initial pause.
        ("grpc.min_reconnect_backoff_ms", int(1000 * connected_s)),
    )


def _options_for(peer: str, silence_s: float = math.inf) -> Sequence[tuple[str, int | str]]:
    return (*_options(silence_s), ("grpc.ssl_target_name_override", dns_name(peer)))


class Channels:
    """One member's channels to its peers: opened when they are first needed, and anew after it got new certificates.

    What is under way on an old channel goes on there; channels are closed together, at the end.
    """

    def __init__(self, security: Security, silence_s: float = math.inf) -> None:
        """`silence_s`: how long a living peer may be silent. CertificateError when the member's files are no good."""
        self._security = security
        self._silence_s = silence_s
        self._files = KeyFiles(security.certificates, security.member) if isinstance(security, Tls) else None
        self._open: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._retired: list[grpc.aio.Channel] = []

    def to(self, peer: str, address: str) -> grpc.aio.Channel:
        """The channel to `peer` at `address`. InsecureAddress when plain text may not go there."""
        if self._files is not None and self._files.renewed() is not None:
            self._retired += self._open.values()
            self._open.clear()
        if (peer, address) not in self._open:
            require_permission(address, self._security)
            keys = None if self._files is None else self._files.keys
            self._open[peer, address] = _open(address, peer, keys, self._silence_s)
        return self._open[peer, address]

    async def close(self) -> None:
        """Ends all calls."""
        for channel in (*self._open.values(), *self._retired):
            await channel.close()


def new_server() -> grpc.aio.Server:
    """A server for the event loop that runs now, still without services and port."""
    connections = min(MOST_CONNECTIONS, _raise_file_limit() // 2)
    options = (*_SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", connections))
    return grpc.aio.server(options=options, maximum_concurrent_rpcs=MOST_CALLS)


def _raise_file_limit() -> int:
    """Lets this process open as many files as the system allows; how many. A stranger's connection is one of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MOST_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 4 * MOST_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def listen(server: grpc.aio.Server, address: str, security: Security) -> str:
    """Lets `server` listen at `address` (port 0: any free one) and returns the address with its port."""
    require_permission(address, security)
    host, wanted_port = host_and_port(address)
    shaper = network.current_shaper()
    try:
        port = _add_port(server, address if shaper is None else "127.0.0.1:0", security)
        if port and shaper is not None:
            port = shaper.expose(host, wanted_port, port)
    except (RuntimeError, OSError):
        port = 0
    if not port:
        raise Unreachable(f"cannot listen at {address}: the port is in use, or the address is not this machine's")
    return f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"


def _add_port(server: grpc.aio.Server, address: str, security: Security) -> int:
    if isinstance(security, Tls):
        return int(
            server.add_secure_port(address, server_credentials(KeyFiles(security.certificates, security.member)))
        )
    return int(server.add_insecure_port(address))
