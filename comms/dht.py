"""One node of a hivemind DHT: a hash table over many machines that keeps small values for a time.

    key       the run
    subkey    bears the RSA key of the node that stored the value: nodes refuse to replace it with another node's
    value     bytes that mean nothing here; see comms/record.py

The only file that knows hivemind, which is imported when a node is opened. Its node lives on an event loop of its own,
beside the p2p daemon that hivemind starts; the daemon ends with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comms.errors import CommsError, Unreachable
from comms.loop_thread import LoopThread
from comms.multiaddress import ANY_PORT, NOWHERE, peer_of

CLOCKS_APART_S = 3.0
"""hivemind refuses nodes whose clocks are further apart."""
MOST_VALUES = 1000
"""Values of one key that are looked at; strangers can add some."""
_CALL_DEADLINE_S = 20.0
_BOOTSTRAP_DEADLINE_S = 3.0


class NoHivemind(CommsError):
    """The optional packages for discovery are not installed."""


@dataclass(frozen=True)
class DhtSettings:
    """Which DHT, and how this node takes part in it."""

    bootstrap: tuple[str, ...]
    """Multiaddresses of nodes that are in it; none: this node begins one."""
    listen: str = ANY_PORT
    identity: Path | None = None
    """A file with the node's key, made when it is missing: the multiaddress then stays what it is. None: a new one."""


class DhtNode:
    """This process's node. Blocking, and safe to use from several threads."""

    def __init__(self, settings: DhtSettings) -> None:
        """Joins the DHT. NoHivemind; Unreachable when no bootstrap peer answers, or not as it should."""
        self._settings = settings
        self._hivemind = import_hivemind()
        self._loop = LoopThread("dht")
        try:
            self._node = self._loop.wait(self._open())
        except BaseException:
            self._loop.stop()
            raise

    @property
    def addresses(self) -> list[str]:
        """The multiaddresses at which others can bootstrap from this node."""
        found: list[str] = [str(address) for address in self._loop.wait(self._node.p2p.get_visible_maddrs())]
        return found

    def store(self, key: str, value: bytes, expires_at_s: float) -> bool:
        """Keeps `value` under `key` in the DHT, beside those of other nodes; whether any node took it."""
        subkey = self._node.protocol.record_validator.local_public_key
        return bool(self._call(self._node.store(key, value, expires_at_s, subkey=subkey), or_else=False))

    def values(self, key: str) -> list[bytes]:
        """What nodes have stored under `key` and has not expired; anybody can have stored some of it."""
        found = self._call(self._node.get(key, latest=True), or_else=None)
        values: Any = getattr(found, "value", None)  # a dictionary of subkeys, unless a stranger stored something else
        if values is None or not hasattr(values, "items"):
            return []
        kept = [item.value for _, item in values.items()][:MOST_VALUES]
        return [value for value in kept if isinstance(value, bytes)]

    def greet(self) -> None:
        """Looks whether the bootstrap peers are there: one that was gone is known again."""
        self._call(self._greet(), or_else=None)

    def close(self) -> None:
        """Leaves, and ends the daemon."""
        self._call(self._node.shutdown(), or_else=None)
        self._loop.stop()

    def _call(self, work: Any, or_else: Any) -> Any:
        try:
            return self._loop.wait(asyncio.wait_for(work, _CALL_DEADLINE_S))
        except Exception as error:  # noqa: BLE001 - hivemind raises what it likes, and discovery must not end a run
            logging.getLogger(__name__).debug("the DHT did not answer: %r", error)
            return or_else

    async def _greet(self) -> None:
        peers = [self._hivemind.PeerID.from_base58(peer_of(address).id) for address in self._settings.bootstrap]
        await asyncio.gather(*(self._node.protocol.call_ping(peer) for peer in peers))

    async def _any_answers(self) -> bool:
        """Whether anybody listens where a bootstrap peer should: cheaper to know than to start the daemon for."""

        async def answers(address: str) -> bool:
            peer = peer_of(address)
            try:
                async with asyncio.timeout(_BOOTSTRAP_DEADLINE_S):
                    _, writer = await asyncio.open_connection(peer.host, peer.port)
            except (OSError, TimeoutError):
                return False
            writer.close()
            return True

        return any(await asyncio.gather(*map(answers, self._settings.bootstrap)))

    async def _open(self) -> Any:
        if self._settings.listen == NOWHERE:
            return await self._create(client_mode=True)
        try:
            return await self._create(client_mode=False)
        except Unreachable as error:
            if "can't access this node" not in str(error):
                raise
            return await self._create(client_mode=True)  # behind a firewall: it can look, and store at others

    async def _create(self, *, client_mode: bool) -> Any:
        settings, hivemind = self._settings, self._hivemind
        if settings.bootstrap and not await self._any_answers():
            raise Unreachable(f"no bootstrap peer of {', '.join(settings.bootstrap)} can be dialled: is one up?")
        listens = settings.listen != NOWHERE
        keys = {} if settings.identity is None else {"identity_path": str(settings.identity)}
        validator = hivemind.RSASignatureValidator(hivemind.RSAPrivateKey())
        try:
            return await hivemind.DHTNode.create(
                initial_peers=list(settings.bootstrap) or None,
                host_maddrs=[settings.listen] if listens else None,
                no_listen=not listens,
                client_mode=client_mode,
                record_validator=validator,
                wait_timeout=_BOOTSTRAP_DEADLINE_S,
                bootstrap_timeout=1.0,
                # What a peer-to-peer file sharer wants of its router, and a training run does not.
                nat_port_map=False,
                auto_nat=False,
                use_relay=False,
                **keys,
            )
        except Exception as error:  # noqa: BLE001 - hivemind raises what it likes
            await asyncio.sleep(0.2)  # hivemind leaves the end of its daemon to the loop, which may be closed next
            raise Unreachable(_refusal(settings, error)) from None


def _refusal(settings: DhtSettings, error: Exception) -> str:
    """One line for what hivemind said when it would not start."""
    said = re.sub(r"\d+/\d+/\d+ \d+:\d+:\d+ ", "", " ".join(str(error).split())) or type(error).__name__
    if "local time" in said.lower():
        return f"the clock of this machine is more than {CLOCKS_APART_S:g} s off the bootstrap peers': set it ({said})"
    if settings.bootstrap:
        return f"no bootstrap peer of {', '.join(settings.bootstrap)} takes this node in: is one up? ({said})"
    return f"the DHT node does not start at {settings.listen}: {said}"


def require_hivemind() -> None:
    """NoHivemind when it is not installed; does not import it."""
    if importlib.util.find_spec("hivemind") is None:
        raise NoHivemind(
            "discovery needs hivemind, which is not installed here; in a clone of dist-train: "
            "pip install -c constraints.txt '.[dht]'"
        )


class _Hivemind:
    """The four names that we use, imported."""

    def __init__(self) -> None:
        # hivemind 1.1 decorates with torch.jit.script, and torch 2.13 warns of that at import.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        # It finds its daemon with importlib.resources.path, which 3.11 calls deprecated (and 3.13 no longer does).
        warnings.filterwarnings("ignore", "path is deprecated", DeprecationWarning, module=r"hivemind\.p2p")
        self.DHTNode: Any = importlib.import_module("hivemind.dht.node").DHTNode
        self.RSASignatureValidator: Any = importlib.import_module("hivemind.dht.crypto").RSASignatureValidator
        self.RSAPrivateKey: Any = importlib.import_module("hivemind.utils.crypto").RSAPrivateKey
        self.PeerID: Any = importlib.import_module("hivemind.p2p").PeerID
        for name in ("hivemind", "hivemind.p2p.p2p_daemon", "hivemind.dht.node", "hivemind.dht.protocol"):
            logging.getLogger(name).setLevel(logging.ERROR)


def import_hivemind() -> _Hivemind:
    """hivemind, which takes seconds the first time; NoHivemind when it is not installed."""
    require_hivemind()
    return _Hivemind()
