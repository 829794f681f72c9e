"""How members agree, find each other, and are let in: [exchange], [checkpoint], [security], [discovery]."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dist_train.config.section import Section, SharedSection
from dist_train.config.texts import AddressText, ListenText, PeerText, RecordSeconds, Seconds


class ExchangeConfig(SharedSection):
    """[exchange]: how payloads and agreement travel, and how long anybody waits."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"address", "most_replicas", "most_faults"})

    address: AddressText = "127.0.0.1:0"
    """Where the coordinator listens; port 0 takes any free port."""
    route: Literal["direct", "relay"] = "direct"
    """`direct`: replicas serve their own payloads. `relay`: the coordinator stores and forwards; all dial only it."""
    min_replicas: int = Field(default=1, ge=1)
    """A round never commits with fewer contributions."""
    most_replicas: int = Field(default=0, ge=0, le=10_000)
    """So many replicas may take part at once, those of the [[replica]] sections and those that `dist-train join` adds;
    0: nobody can join. The coordinator alone reads it."""
    most_faults: int = Field(default=3, ge=1)
    """A replica whose payloads were broken, or whose parameters were damaged, so often is expelled. Launching again
    with more pardons it. The coordinator alone reads it."""
    most_replayed_rounds: int = Field(default=20, ge=0)
    """A replica that is further behind begins with a snapshot of the others' parameters, and with no error feedback."""
    work_deadline_s: Seconds = 3600.0
    """How long a round waits for a report that it can't do without."""
    gather_deadline_s: Seconds = 300.0
    """How long a starting (or restarted) coordinator waits for all replicas before it goes on with those present."""
    publish_deadline_s: Seconds = 60.0
    """How long a round waits for the others once the first replica has reported."""
    fetch_deadline_s: Seconds = 60.0
    """How long a replica may take to fetch the payloads of a round and acknowledge them."""
    heartbeat_s: Seconds = 2.0
    """A replica says that it lives this often."""
    liveness_deadline_s: Seconds = 15.0
    """A replica silent for so long is taken for dead. The same limit, at most 10 s, applies to unacknowledged bytes on
    a connection: then it is given up for a new one."""
    reconnect_deadline_s: Seconds = 5.0
    """A replica whose connection broke is taken for dead after so long, unless it is back."""
    outage_deadline_s: Seconds = 120.0
    """How long a replica tries to reach a coordinator that is gone, or waits for one that does not answer."""
    most_payload_bytes: int = Field(default=4 * 2**30, ge=4096)
    """Most payload bytes of one replica in one round, all fragments together. What is above it is refused."""

    @model_validator(mode="after")
    def _inner_below_outer(self) -> ExchangeConfig:
        if self.heartbeat_s * 2 >= self.liveness_deadline_s:
            raise ValueError(
                f"heartbeat_s = {self.heartbeat_s:g} must be less than half of "
                f"liveness_deadline_s = {self.liveness_deadline_s:g}"
            )
        if self.reconnect_deadline_s > self.liveness_deadline_s:
            raise ValueError(
                f"reconnect_deadline_s = {self.reconnect_deadline_s:g} must not be above "
                f"liveness_deadline_s = {self.liveness_deadline_s:g}"
            )
        if self.liveness_deadline_s > self.gather_deadline_s:
            raise ValueError(
                f"liveness_deadline_s = {self.liveness_deadline_s:g} must not be above "
                f"gather_deadline_s = {self.gather_deadline_s:g}"
            )
        return self


class CheckpointConfig(SharedSection):
    """[checkpoint]: how often a replica can be resumed from, and how far back."""

    every_rounds: int = Field(default=1, ge=1)
    """Rounds between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept; older ones are deleted after a newer one is whole."""


class SecurityConfig(Section):
    """[security]: who may take part, and who may listen in. See docs/security.md."""

    mode: Literal["loopback", "tls", "insecure"] = "loopback"
    """`loopback` sends plain text and never leaves this machine; `tls` wants certificates of everybody; `insecure` says
    that plain text may leave this machine."""
    certificates: str = "certs"
    """Under `tls`: where this machine keeps the certificates and keys of its members. `dist-train certs` makes them."""
    token_file: str | None = None
    """Under `tls`: the file with the secret that a replica must know to join; CERTIFICATES/run.token when left out."""


class DiscoveryConfig(Section):
    """[discovery]: how members find each other by the run's name, without a fixed address. See docs/discovery.md."""

    bootstrap: tuple[PeerText, ...] = ()
    """Nodes of the DHT to begin with, such as "/ip4/192.0.2.1/tcp/7100/p2p/QmVW..."; any of them will do. None: there
    is no discovery, unless `listen` says that this member begins a DHT."""
    listen: ListenText | None = None
    """Where this member's node listens, such as "/ip4/0.0.0.0/tcp/7100"; "none" only dials out. When left out: any port
    of this machine's, but nowhere for a replica under `exchange.route = "relay"`."""
    advertise: AddressText | None = None
    """HOST:PORT at which others reach the coordinator, where that is not where it listens: a forwarded port."""
    record_s: RecordSeconds = 60.0
    """How long an address is good for after its member was last heard of; it is renewed three times as often."""

    @property
    def is_on(self) -> bool:
        """Whether members look for each other at all."""
        return bool(self.bootstrap) or self.listen is not None
