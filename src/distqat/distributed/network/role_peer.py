"""What every role has on the network: an identity, the engine, a transport and the directory."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqat.config import Config
from distqat.errors import ConfigError, RoleError
from distqat.process import PortClaim, claim_port, host_id, runtime_dir
from distqat.process.runtime_folder import moved
from distqat.swarm.dht_node import DhtNode, EngineOptions, P2PStreams
from distqat.swarm.directory import DhtDirectory
from distqat.swarm.handshake import TOKEN, Admission
from distqat.swarm.peer_identity import PeerIdentity
from distqat.swarm.role_addresses import bound_hosts, public_and_loopback
from distqat.swarm.transport import StreamTransport, UnixStreams

logger = logging.getLogger(__name__)


@dataclass
class RolePeer:
    """One role's presence in the swarm."""

    identity: PeerIdentity
    engine: DhtNode
    transport: StreamTransport
    directory: DhtDirectory
    host: str
    maddrs: tuple[str, ...]
    _port: PortClaim
    _streams: UnixStreams

    @classmethod
    async def start(
        cls,
        config: Config,
        *,
        port: int,
        port_given: bool,
        initial_peers: Sequence[str],
        claimed: int | None = None,
        identity: Path | None = None,
    ) -> RolePeer:
        """Bind, join the DHT, be ready to dial. Raises RoleError: a busy port, no peer that answers.

        `claimed`: a port that our launcher holds for us.
        """
        claim = claim_port(bound_hosts(config.public_ip), port, port_given, claimed=claimed)
        sweep_dead_sockets(runtime_dir())
        key = identity or runtime_dir() / f"{os.getpid()}-{secrets.token_hex(4)}.key"
        try:
            own = PeerIdentity.load_or_create(key)
            engine = await DhtNode.start(own, _options(config, claim.port, initial_peers))
        finally:
            if identity is None:  # p2pd has read it; the key lives as long as the process
                key.unlink(missing_ok=True)
        host = host_id()
        unix = UnixStreams(runtime_dir(), own.peer, host)
        admission = Admission.of_environment(config.experiment_prefix, own.peer)
        if (elsewhere := moved()) is not None:
            logger.info(elsewhere)
        if config.public_ip is None:
            logger.info("announcing on loopback only; give --public-ip to be reachable from other machines")
        by_token = admission.token is not None
        logger.info(
            "admission: %s", "by token" if by_token else f"open to anybody; set {TOKEN} to close the swarm"
        )
        return cls(
            identity=own,
            engine=engine,
            transport=StreamTransport(admission, [unix, P2PStreams(engine)]),
            directory=DhtDirectory(engine, config.experiment_prefix, tuple(config.stages)),
            host=host,
            maddrs=await engine.addresses(),
            _port=claim,
            _streams=unix,
        )

    async def lost_daemon(self) -> None:
        """Raises RoleError when the libp2p daemon ends: a role without it must end too."""
        code = await self.engine.daemon_death()
        raise RoleError(f"the libp2p daemon of this role ended with code {code}; the role ends with it")

    async def stop(self) -> None:
        """Say goodbye and end the daemon."""
        await self.transport.close()
        await self.engine.stop()
        self._port.release()


def _options(config: Config, port: int, initial_peers: Sequence[str]) -> EngineOptions:
    listen, announce = public_and_loopback(port, config.public_ip)
    return EngineOptions(
        listen=tuple(config.host_maddrs or listen),
        announce=tuple(config.announce_maddrs or announce),
        initial_peers=tuple(initial_peers),
        socket_folder=str(runtime_dir()),
    )


def sweep_dead_sockets(folder: Path, bound: Path = Path("/proc/net/unix")) -> None:
    """Remove sockets that no process has open any more: their owners were killed. Linux only."""
    there = list(folder.glob("*.sock"))  # first: one that is bound after this is not touched
    try:
        lines = bound.read_bytes().splitlines()  # of anybody: not always text
        in_use = {os.fsdecode(line.split(maxsplit=7)[-1]) for line in lines if b"/" in line}
    except OSError:
        return
    for path in there:
        if str(path) not in in_use and _is_dead(path):
            path.unlink(missing_ok=True)


def _is_dead(path: Path) -> bool:
    """Sockets of other network namespaces are not listed, but they answer."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # full, or gone already
            return False
    return False


def need_peers(config: Config) -> None:
    """ConfigError unless there is somebody to join: alone, a client or server would wait for ever."""
    if not config.initial_peers:
        raise ConfigError(
            "--initial-peers is missing; give the addresses that start_trainer_client.py prints, and that "
            f"stand in {config.store_ip_addresses_path} of the monitor's host"
        )


def need_log_dir(config: Config) -> None:
    """Make the folder of logs and metrics. RoleError: it cannot be made."""
    try:
        Path(config.log_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RoleError(
            f"cannot write logs in {config.log_dir}: {error.strerror}; name another folder with --log-dir"
        ) from error


async def first_failure(*work: asyncio.Future[Any]) -> None:
    """Raise what the first of `work` raises; returns never, whatever else of it ends."""
    await asyncio.wait(work, return_when=asyncio.FIRST_EXCEPTION)
    for each in work:
        if each.done():
            each.result()
    await asyncio.Event().wait()


async def first_of(stop: asyncio.Event, *work: asyncio.Future[Any]) -> asyncio.Future[Any] | None:
    """Wait for `stop` or the first of `work` to end; that one, or None when stopped."""
    asked: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait({asked, *work}, return_when=asyncio.FIRST_COMPLETED)
        return next((each for each in work if each in done), None)
    finally:
        asked.cancel()
