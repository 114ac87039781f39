"""The server: hosts one replica of a stage, trains it, averages it, moves where it is needed."""

from __future__ import annotations

from distqat.terminal import begin, leave

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("server", clean=False)

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch

from distqat.config import Config
from distqat.distributed.assembly.keep_earlier_runs import make_room
from distqat.distributed.assembly.model_check import check_batch, check_run
from distqat.distributed.assembly.run_notes import note_run_of_server
from distqat.distributed.assembly.teacher_model import build_served
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.network.role_peer import RolePeer, first_of, need_log_dir, need_peers
from distqat.distributed.network.unreachable_peers import UnreachablePeers
from distqat.distributed.role_main import RoleStart, run_role_main
from distqat.distributed.serving.compute_thread import ComputeThread
from distqat.distributed.serving.held_slot import HeldSlot
from distqat.distributed.serving.run_settings import most_samples, take_over
from distqat.distributed.serving.server_process import ServerProcess
from distqat.distributed.serving.slot_request import ask_for_slot
from distqat.errors import (
    ConfigError,
    ProtocolMismatch,
    Refused,
    RunFailed,
    RunFinished,
    StageUnavailable,
    SwarmError,
    Unreachable,
)
from distqat.metrics import Sink, open_sinks
from distqat.process import (
    CoreShare,
    resolve_device,
    set_title,
    threads_per_server,
)
from distqat.protocol.calls.slot_calls import Leave
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.tensor_frame import Message

logger = logging.getLogger(__name__)


class Server:
    """One server process. `run` serves slot after slot until the run is finished or it is asked to stop."""

    def __init__(
        self, config: Config, peer: RolePeer, device: str, sink: Sink, given: Collection[str] = ()
    ) -> None:
        """`given`: the keys of `config` that were flags."""
        self._config = config
        self._given = frozenset(given)
        self._peer = peer
        self._device = torch.device(device)
        self._coordinator = CoordinatorLink(peer.transport, peer.directory)
        self._most_threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or threads_per_server(1)
        self._compute = ComputeThread(self._most_threads)
        most = most_samples(config, given)
        self._process = ServerProcess(peer, self._coordinator, self._compute, self._device, sink, most)
        self._unreached = UnreachablePeers(peer.transport, self._coordinator, peer.host)
        self._held: HeldSlot | None = None

    async def run(self, stop: asyncio.Event) -> int:
        """Exit code 0: finished, or left in order."""
        await self._peer.transport.serve(self._answer, self._gone)
        background: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._peer.lost_daemon()),
            asyncio.ensure_future(self._unreached.report()),
            asyncio.ensure_future(self._share_cores()),
        ]
        try:
            while not stop.is_set():
                serving: asyncio.Future[Any] = asyncio.ensure_future(self._serve_one_slot())
                ended = await first_of(stop, serving, *background)
                if ended is not serving:
                    if ended is None and self._held is not None:
                        await self._held.drain()
                    serving.cancel()
                    await asyncio.gather(serving, return_exceptions=True)
                    if ended is not None:
                        ended.result()
                    break
                if serving.result() == "finished":
                    logger.info("the run is finished")
                    break
            return 0
        finally:
            for task in background:
                task.cancel()
            with contextlib.suppress(SwarmError):
                if self._coordinator.connected:
                    await self._coordinator.ask(Leave(), timeout=2.0)
            self._compute.stop()
            await asyncio.gather(*background, return_exceptions=True)

    async def _share_cores(self) -> None:
        """Leave some of the cores to other servers of this host; a GPU is its own."""
        if self._device.type != "cpu":
            await asyncio.Event().wait()
        try:
            share = CoreShare()
        except OSError as error:  # a full disk must not keep it from serving
            logger.warning("other servers of this host do not know of this one: %s", error)
            await asyncio.Event().wait()

        def compute_with(threads: int) -> None:
            logger.info("CPU threads: %d", threads)
            self._compute.set_threads(threads)

        try:
            await share.follow(compute_with, self._most_threads)
        finally:
            share.leave()

    async def _serve_one_slot(self) -> str:
        """From the slot to its end: "finished", "moved", or "lost" (the slot is somebody else's)."""
        try:
            slot = await ask_for_slot(self._config, self._peer, self._coordinator, None)
        except RunFinished:
            return "finished"
        set_title(f"server {slot.expert}")
        logger.info("granted slot %s, epoch %d", slot.expert, slot.epoch)
        config = take_over(self._config, slot.settings, self._given)
        if slot.batch is not None:
            await asyncio.to_thread(check_batch, config, slot.batch)
        await asyncio.to_thread(make_room, config, slot.counts_from, goes_on=slot.goes_on)
        await asyncio.to_thread(note_run_of_server, config, slot.generation, slot.counts_from)
        module = await asyncio.to_thread(build_served, config, slot.expert.stage)
        held = self._held = HeldSlot(config, self._process, slot, module)
        try:
            return await held.run()
        finally:
            self._held = None
            await held.served.close()

    async def _answer(self, call: IncomingCall) -> Message:
        if self._held is None:
            raise StageUnavailable("this server holds no slot at the moment")
        return await self._held.served.answer(call)

    def _gone(self, peer: str, silent: bool) -> None:
        if self._held is not None:
            self._held.served.steps.attempts.gone(peer, silent)


async def serve(start: RoleStart, stop: asyncio.Event) -> int:
    """Start the peer, serve, stop."""
    config, parameters, flags = start.config, start.parameters, start.args.config_overrides
    device = resolve_device(config.device, explicit="device" in flags, index=parameters.server_index)
    await asyncio.to_thread(check_run, config)
    need_peers(config)
    need_log_dir(config)
    peer = await RolePeer.start(
        config,
        port=config.server_base_port,
        port_given=start.given("server_base_port"),
        initial_peers=config.initial_peers,
        claimed=parameters.claimed_port,
    )
    sink = open_sinks(config.log_dir, parameters.log_name or f"server_{os.getpid()}")
    try:
        return await Server(config, peer, device, sink, flags).run(stop)
    except Unreachable as error:
        raise RunFailed(str(error).partition(": ")[2]) from error  # without the name of the client
    except (ProtocolMismatch, Refused) as error:  # starting again cannot help
        raise ConfigError(str(error)) from error
    finally:
        await peer.stop()
        sink.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: the run finished, or the server left in order; 1: it could not serve; 2: refused."""
    return run_role_main("server", "Serve one stage of a run.", serve, argv)


if __name__ == "__main__":
    leave(main())
