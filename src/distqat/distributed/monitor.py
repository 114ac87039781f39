"""The monitor: bootstraps the DHT, writes the addresses to join, collects and shows metrics."""

from __future__ import annotations

import sys

from distqat.terminal import begin, keeps_clean, leave

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("monitor", clean="--watch" in sys.argv)

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distqat.atomic_files import write_whole
from distqat.config import Config
from distqat.distributed.network.other_runs import OtherRuns
from distqat.distributed.network.role_peer import RolePeer, first_of, need_log_dir
from distqat.distributed.role_main import RoleStart, run_role_main
from distqat.errors import ConfigError, SwarmError
from distqat.metrics import Sink, open_sinks
from distqat.metrics.status_waits import waits_of
from distqat.process import announce_ready, set_up_logging
from distqat.protocol.calls.slot_calls import AskStatus
from distqat.swarm.call_messages import ask
from distqat.swarm.directory import DirectoryWatch, address_of, keep_announced

logger = logging.getLogger(__name__)

ASK_EVERY_S = 2.0
ASK_TIMEOUT = 5.0


class Monitor:
    """Asks every server and the client how they are."""

    def __init__(self, config: Config, peer: RolePeer) -> None:
        self._config = config
        self._peer = peer
        self._watch = DirectoryWatch(peer.directory, config.stages)

    async def collect(self) -> dict[str, Any]:
        """Statuses of all servers and, if it answers, of the client."""
        snapshot = await self._watch.refresh()
        asked = [self._ask(address_of(record)) for record in snapshot.servers]
        servers = [status for status in await asyncio.gather(*asked) if status is not None]
        client: dict[str, Any] | None = None
        with contextlib.suppress(SwarmError):
            for address in await self._peer.directory.roles("client"):
                client = await self._ask(address)
                if client is not None:
                    break
        client = client or {}
        return {
            "servers": sorted(servers, key=lambda status: str(status.get("uid"))),
            "trainers": client.get("trainers", []),
            "rounds": client.get("ended_rounds", []),
            "waits": waits_of({"servers": servers, "waits": client.get("waits")}),
        }

    async def _ask(self, address: Any) -> dict[str, Any] | None:
        try:
            link = await self._peer.transport.link(address)
            return dict((await ask(link, AskStatus(), timeout=ASK_TIMEOUT)).figures)
        except SwarmError as error:
            logger.debug("no status from %s: %s", address.peer, error)
            return None


async def serve(start: RoleStart, stop: asyncio.Event) -> int:
    """Bootstrap the swarm and record its metrics until asked to stop."""
    config = start.config
    need_log_dir(config)
    peer = await RolePeer.start(
        config,
        port=config.monitor_port,
        port_given=start.given("monitor_port") or config.monitor_port != 0,
        claimed=start.parameters.claimed_port,
        initial_peers=config.initial_peers,
        identity=Path(config.log_dir) / "monitor.key",
    )
    sink = open_sinks(config.log_dir, "monitor", config.wandb_project)
    addresses = list(peer.maddrs)
    try:
        write_whole(Path(config.store_ip_addresses_path), ",".join(addresses) + "\n")
    except OSError as error:
        raise ConfigError(
            f"store_ip_addresses_path: the addresses cannot be written to {config.store_ip_addresses_path}: "
            f"{error.strerror}; name another file"
        ) from error
    logger.info("initial peers, also in %s: %s", config.store_ip_addresses_path, ",".join(addresses))
    monitor = Monitor(config, peer)
    announcing = asyncio.ensure_future(
        keep_announced(lambda: peer.directory.announce_role("monitor", peer.host))
    )
    recording = asyncio.ensure_future(_record(monitor, sink, config.refresh_period))
    daemon = asyncio.ensure_future(peer.lost_daemon())
    announce_ready({"role": "monitor", "peers": addresses})
    try:
        ended = await first_of(stop, daemon, recording)
        if ended is not None:
            ended.result()
        return 0
    finally:
        for task in (announcing, recording, daemon):
            task.cancel()
        await peer.stop()
        sink.close()


async def _record(monitor: Monitor, sink: Sink, period_s: float) -> None:
    """Write what servers tell, every `period_s`."""
    while True:
        await asyncio.sleep(period_s)
        for status in (await monitor.collect())["servers"]:
            sink.write({"event": "server", **status})


async def watch(config: Config, stop: asyncio.Event) -> int:
    """Show the table of a running swarm, renewed every two seconds. ConfigError: it has other runs only."""
    from rich.live import Live

    from distqat.metrics import swarm_table

    peers = config.initial_peers or _written_peers(config)
    peer = await RolePeer.start(config, port=0, port_given=False, initial_peers=peers)
    monitor, others = Monitor(config, peer), OtherRuns(peer.directory)
    try:
        with Live(refresh_per_second=2, redirect_stderr=not keeps_clean()) as live:
            while not stop.is_set():
                status = await monitor.collect()
                if not status["servers"]:
                    await others.check(time.monotonic())
                live.update(swarm_table(status))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), ASK_EVERY_S)
        return 0
    finally:
        await peer.stop()


def _written_peers(config: Config) -> list[str]:
    path = Path(config.store_ip_addresses_path)
    if not path.exists():
        raise ConfigError(f"no --initial-peers, and {path} is not there; is a monitor of this run running?")
    return [text for text in path.read_text(encoding="utf-8").strip().split(",") if text]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: stopped in order; 1: it could not serve; 2: refused."""
    return run_role_main(
        "monitor",
        "Bootstrap a swarm, or watch one.",
        _serve_or_watch,
        argv,
        flags=lambda parser: parser.add_argument(
            "--watch", action="store_true", help="print the table of a running swarm instead"
        ),
        title=lambda args, told: "monitor --watch" if args.watch else "monitor",
    )


async def _serve_or_watch(start: RoleStart, stop: asyncio.Event) -> int:
    if not start.args.watch:
        return await serve(start, stop)
    if not start.given("log_level"):
        set_up_logging("monitor", "WARNING")
    return await watch(start.config, stop)


if __name__ == "__main__":
    leave(main())
