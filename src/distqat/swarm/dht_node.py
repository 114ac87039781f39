"""One role's libp2p daemon and DHT node, in the role's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distqat.errors import ClockSkew, ConfigError, DirectoryUnavailable, RoleError
from distqat.protocol.hop import PeerAddress
from distqat.swarm import hivemind_patches
from distqat.swarm.clock_skew import check_clock, read_clocks
from distqat.swarm.deadline import within
from distqat.swarm.dht_rejoin import KnownPeers
from distqat.swarm.dial_back import dial_afresh, dial_problem, end_daemon
from distqat.swarm.peer_identity import PeerIdentity, peer_of_public_key
from distqat.swarm.record_validator import MAX_RECORD_BYTES, MAX_TTL_S, OWNER, SignedRecord, record_is_bounded
from distqat.swarm.transport import OnStream

logger = logging.getLogger(__name__)

PROTOCOL_NAME = "/distqat/1"
LOOKUP_TIMEOUT = 5.0
STOP_TIMEOUT = 2.0
_UNREADABLE = re.compile(
    r'failed to parse multiaddr "([^"]*)": (.*)', re.DOTALL
)  # the daemon, of an initial peer


@dataclass(frozen=True)
class EngineOptions:
    """How a peer listens and whom it knows. `announce` empty means: what it listens on."""

    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    socket_folder: str = "/tmp"
    """Where the daemon's Unix sockets go."""


class DhtNode:
    """A running p2pd with a DHT node on it. Start with `DhtNode.start`, end with `stop`."""

    def __init__(self, identity: PeerIdentity, p2p: Any, node: Any, signer: Any, *, joined: bool) -> None:
        self.identity = identity
        self.peer = identity.peer
        self.p2p = p2p
        self._node = node
        self._signer = signer
        self._joined = joined  # it came to others, so alone it is cut off; a first peer may be alone
        self._daemon_watch = asyncio.ensure_future(p2p._child.wait())
        self._reunion = asyncio.ensure_future(KnownPeers(node).keep_in_touch())

    @classmethod
    async def start(cls, identity: PeerIdentity, options: EngineOptions) -> DhtNode:
        """Start the daemon and join the DHT.

        Raises RoleError when no initial peer answers, ConfigError when one is not an address, ClockSkew.
        """
        hivemind_patches.install()
        from hivemind.dht.crypto import RSASignatureValidator
        from hivemind.dht.node import DHTNode
        from hivemind.p2p import P2P
        from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError

        P2P._UNIX_SOCKET_PREFIX = f"/unix{options.socket_folder}/p2pd-"  # not the shared /tmp
        try:
            p2p = await P2P.create(
                initial_peers=options.initial_peers or None,
                host_maddrs=options.listen,
                announce_maddrs=options.announce or None,
                identity_path=str(identity.path),
                check_if_identity_free=False,
                nat_port_map=False,
                auto_nat=False,
                startup_timeout=30,
            )
        except (P2PDaemonError, OSError) as error:
            if "bootstrap peers" in str(error):
                raise RoleError(_nobody_answers(options)) from error
            if unreadable := _UNREADABLE.search(str(error)):
                raise ConfigError(
                    f"--initial-peers: {unreadable[1]!r} is not an address of a peer "
                    f"({unreadable[2].strip()}); "
                    "copy what start_trainer_client.py prints"
                ) from error
            raise RoleError(
                f"the libp2p daemon did not start on {', '.join(options.listen)}: {error}"
            ) from error
        signer = RSASignatureValidator(identity.private_key)
        try:
            node = await DHTNode.create(
                p2p=p2p,
                initial_peers=list(options.initial_peers) or None,
                record_validator=_validator(signer),
                cache_locally=False,
                cache_on_store=False,
                cache_nearest=0,
                strict=False,
            )
        except asyncio.CancelledError:
            await p2p.shutdown()
            raise
        except Exception as error:
            await p2p.shutdown()
            raise RoleError(f"{_nobody_answers(options)} ({error})") from error
        known = [text.rpartition("/p2p/")[2] for text in options.initial_peers]
        try:
            check_clock(await read_clocks(known, lambda peer: _clock_of(node, peer)))
        except (ClockSkew, asyncio.CancelledError):
            await node.shutdown()
            await p2p.shutdown()
            raise
        return cls(identity, p2p, node, signer, joined=bool(options.initial_peers))

    async def addresses(self) -> tuple[str, ...]:
        """The multiaddrs under which others reach this peer. Raises DirectoryUnavailable."""
        with _bounded("ask the libp2p daemon for its addresses"):
            maddrs = await within(self.p2p.get_visible_maddrs(latest=True), LOOKUP_TIMEOUT)
        return tuple(str(maddr) for maddr in maddrs)

    async def daemon_death(self) -> int:
        """Wait until the daemon ends; a role without it must end too."""
        return int(await asyncio.shield(self._daemon_watch))

    async def store(self, key: str, name: str, value: bytes, ttl_s: float) -> bool:
        """Put a record, signed and bound to this peer, under `key`. False if no node took it.

        Raises DirectoryUnavailable, ValueError for a record that is too large or for too long.
        """
        if len(value) > MAX_RECORD_BYTES or not 0 < ttl_s <= MAX_TTL_S:
            raise ValueError(
                f"record of {len(value)} bytes for {ttl_s} s under {key}, at most {MAX_RECORD_BYTES} bytes "
                f"for {MAX_TTL_S:.0f} s"
            )
        subkey = name.encode() + self._signer.local_public_key
        with _bounded(f"store {key}"):
            stored = await within(
                self._node.store(key, value, dht_time() + ttl_s, subkey=subkey), LOOKUP_TIMEOUT
            )
        return bool(stored)

    async def find(self, key: str) -> list[SignedRecord]:
        """All live records under `key`. Raises DirectoryUnavailable: unknown is not empty."""
        with _bounded(f"look up {key}"):
            entry = await within(self._node.get(key, latest=True), LOOKUP_TIMEOUT)
            cut_off = self._joined and not await within(self.p2p.list_peers(), LOOKUP_TIMEOUT)
        if cut_off:  # what it holds itself is no picture of the swarm
            raise DirectoryUnavailable(f"cannot look up {key}: this peer is connected to nobody")
        if entry is None or not hasattr(entry.value, "items"):
            return []
        found = (
            _found(subkey, item.value, float(item.expiration_time)) for subkey, item in entry.value.items()
        )
        return [record for record in found if record is not None]

    async def stop(self) -> None:
        """Leave the DHT and end the daemon; never hangs, also when the daemon is stopped or dead already."""
        self._reunion.cancel()
        if not self._daemon_watch.done():
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._node.shutdown(), STOP_TIMEOUT)
        self._daemon_watch.cancel()
        await end_daemon(self.p2p)


def _nobody_answers(options: EngineOptions) -> str:
    peers = ", ".join(options.initial_peers)
    return (
        f"no initial peer answered ({peers}): check that the monitor runs and that the address, "
        "with its /p2p/ part, is today's"
    )


async def _clock_of(node: Any, peer: str) -> float | None:
    """DHT time of a peer, by a ping."""
    from hivemind.p2p import P2PDaemonError, P2PHandlerError, PeerID
    from hivemind.proto import dht_pb2

    protocol = node.protocol
    stub = protocol.get_stub(PeerID.from_base58(peer))
    try:
        answer = await within(stub.rpc_ping(dht_pb2.PingRequest(validate=False)), LOOKUP_TIMEOUT)
    except (P2PDaemonError, P2PHandlerError, asyncio.IncompleteReadError, asyncio.TimeoutError):
        return None
    return answer.dht_time if math.isfinite(answer.dht_time) and answer.dht_time > 0 else None


class P2PStreams:
    """Byte streams through the peer's libp2p daemon."""

    def __init__(self, engine: DhtNode) -> None:
        self._engine = engine

    def reaches(self, to: PeerAddress) -> bool:
        return True

    async def listen(self, on_stream: OnStream) -> None:
        async def accept(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await on_stream(info.peer_id.to_base58(), reader, writer)

        await self._engine.p2p.add_binary_stream_handler(PROTOCOL_NAME, accept)

    async def open(self, to: PeerAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        from hivemind.p2p import PeerID
        from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
        from hivemind.utils.multiaddr import Multiaddr

        try:
            peer = PeerID.from_base58(to.peer)
            maddrs = [Multiaddr(text.split("/p2p/")[0]) for text in to.maddrs]
            if maddrs:
                await self._engine.p2p._client.connect(peer, maddrs)
            _, reader, writer = await self._engine.p2p.call_binary_stream_handler(peer, PROTOCOL_NAME)
        except (ControlFailure, ValueError, LookupError, asyncio.IncompleteReadError) as error:
            raise OSError(dial_problem(str(error))) from error
        return reader, writer

    async def prove(self, to: PeerAddress) -> None:
        await dial_afresh(to)

    async def hang_up(self, peer: str) -> None:
        from hivemind.p2p import PeerID
        from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure

        with contextlib.suppress(ControlFailure, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            await within(self._engine.p2p._client.disconnect(PeerID.from_base58(peer)), LOOKUP_TIMEOUT)

    async def close(self) -> None:
        return


def dht_time() -> float:
    """Wall clock: only for records; durations use the monotonic clock."""
    return time.time()


def _validator(signer: Any) -> Any:
    """The signature, and before it the bounds that every record under our keys must keep."""
    from hivemind.dht.validation import CompositeValidator, RecordValidatorBase

    class AddressBounds(RecordValidatorBase):  # type: ignore[misc]
        """Anything else is neither kept nor believed."""

        def validate(self, record: Any) -> bool:
            return record_is_bounded(record.subkey, record.value, record.expiration_time, dht_time())

        @property
        def priority(self) -> int:
            return 20

    return CompositeValidator([signer, AddressBounds()])


def _found(subkey: Any, value: Any, expires_at: float) -> SignedRecord | None:
    """The record of one subkey; None for what is not ours, whose key cannot be read, or that is over."""
    match = OWNER.search(subkey) if isinstance(subkey, bytes) else None
    if match is None or not isinstance(value, bytes) or not dht_time() < expires_at:
        return None
    try:
        return SignedRecord(peer_of_public_key(match.group(1)), value, expires_at)
    except ValueError as error:
        logger.warning("ignored a record with an unreadable public key: %s", error)
        return None


@contextlib.contextmanager
def _bounded(what: str) -> Iterator[None]:
    """At the edge to the engine: whatever it raises, nothing is known."""
    try:
        yield
    except asyncio.TimeoutError:
        raise DirectoryUnavailable(f"cannot {what}: no answer in {LOOKUP_TIMEOUT:.0f} s") from None
    except Exception as error:
        raise DirectoryUnavailable(f"cannot {what}: {type(error).__name__}: {error}") from error
