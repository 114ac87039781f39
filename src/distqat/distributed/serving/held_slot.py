"""One slot of the swarm for as long as a server holds it: serve, tell the client, hear it, leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from torch import nn

from distqat.config import Config
from distqat.distributed.serving.run_settings import take_over_again
from distqat.distributed.serving.served_replica import ServedReplica
from distqat.distributed.serving.server_process import ServerProcess
from distqat.distributed.serving.slot_request import ask_for_slot
from distqat.distributed.serving.slot_state import SlotState
from distqat.errors import Refused, RunFinished, Unreachable
from distqat.process import notice
from distqat.protocol.call_schema import parse
from distqat.protocol.calls.slot_calls import Beat, GrantedSlot, LiveState
from distqat.swarm.deadline import within
from distqat.swarm.directory import keep_announced

logger = logging.getLogger(__name__)

BEAT_S = 1.0  # seconds between two beats
DRAIN_S = 4.0


class HeldSlot:
    """One slot for as long as this server holds it."""

    def __init__(self, config: Config, server: ServerProcess, slot: GrantedSlot, module: nn.Module) -> None:
        self.state = SlotState(slot)
        self.served = ServedReplica(config, server, self.state, module)
        self._config = config
        self._server = server
        self._resyncing: asyncio.Future[None] | None = None
        self._heard = ""  # what the client had to tell the owner of this server
        self._failure = ""  # why the client says that the run cannot go on

    async def run(self) -> str:
        """Serve until the run is "finished", this server is to move ("moved"), or the slot is "lost"."""
        served = self.served
        work: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(keep_announced(served.status.announce)),
            asyncio.ensure_future(self.state.lease.watch(self._lease_over)),
            asyncio.ensure_future(self._beat()),
            asyncio.ensure_future(served.serve()),
            served.steps.broken,
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            return str(next(iter(done)).result())
        except Unreachable:  # some still have a connection: let their steps end
            await self.drain()
            raise
        except Refused as error:
            logger.warning("%s is lost: %s", self.state.uid, error)
            return "lost"
        except RunFinished:
            await served.checkpoints.finished(self.state.generation)
            return "finished"
        finally:
            work += [self._resyncing] if self._resyncing is not None else []
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def drain(self) -> None:
        """Before leaving: take no more steps, say so, and let those end that have begun; in DRAIN_S at most.

        What the directory still says of us is a record that trainers do not route over.
        """
        self.state.state = "draining"
        with contextlib.suppress(asyncio.TimeoutError):
            await within(
                asyncio.gather(self.served.become("draining"), self.served.steps.attempts.idle()), DRAIN_S
            )

    def _lease_over(self, silent_s: float) -> None:
        if self.state.shown != "unknown":
            return
        uid = self.state.uid
        logger.warning("%s pauses: no answer of the client for %.1f s; it keeps its state", uid, silent_s)
        self.served.status.event("lease", held=False, silent_s=silent_s)
        try:
            self.state.admit()
        except Refused as error:
            self.served.steps.attempts.refuse_waiting(error)

    async def _beat(self) -> str:
        """Tell the client that we live; hear whether the run is finished or we are to move."""
        state, checkpoints = self.state, self.served.checkpoints
        while True:
            asked = state.lease.now()
            figures = {**self.served.status.status(), "unsaved": checkpoints.trouble}
            answer = await self._server.coordinator.insist(parse(Beat, figures))
            if answer.finished:
                await checkpoints.finished(state.generation)
                return "finished"
            self._hear(answer.failed, answer.notice)
            if answer.generation is not None:
                state.generation = answer.generation
            if answer.unknown and not await self._reclaim():
                return "lost"
            await self._renew(asked, answer.behind)
            if answer.move:
                logger.info("asked to leave %s for a stage without a replica", state.uid)
                return "moved"
            await asyncio.sleep(BEAT_S / 10 if state.lease.over else BEAT_S)

    async def _renew(self, asked: float, behind: bool) -> None:
        """The client answered what it was asked at `asked`: serve on, once we have all that it has.

        Nobody serves with an anchor that the others do not have, and least of all after a silence.
        """
        state, lease = self.state, self.state.lease
        if self._resyncing is not None and self._resyncing.done():
            self._resyncing.result()
            self._resyncing = None
        if behind and self.served.member is not None and self._resyncing is None:
            self._resyncing = asyncio.ensure_future(self.served.member.resync())
        if (
            self._resyncing is not None
        ):  # who is behind and cannot get what it missed stops serving in the end
            return
        if not lease.over:
            lease.renew(asked)
            return
        silent, paused = lease.silent_s, state.shown == "unknown"
        lease.confirm(asked)
        if paused and not lease.over:
            logger.info("%s serves again: the client answers, after %.1f s of silence", state.uid, silent)
            self.served.status.event("lease", held=True, silent_s=silent)
            await self.served.become(state.state)

    async def _reclaim(self) -> bool:
        """The client does not know us (it restarted, or our link broke): keep the slot if it is free."""
        state, served, live = self.state, self.served, None
        if served.committed is not None:
            held = served.committed
            live = LiveState(state.generation, held.round, held.digest)
        peer, coordinator = self._server.peer, self._server.coordinator
        granted = await ask_for_slot(self._config, peer, coordinator, state.uid, live)
        # Who founded the stage keeps it: it is not a founder any more once round 0 is in the log.
        if granted.expert != state.granted.expert or (granted.founder and not state.granted.founder):
            logger.warning("%s is somebody else's now", state.uid)
            return False
        logger.info("holding %s again, epoch %d", state.uid, granted.epoch)
        state.granted = granted
        config = take_over_again(self._config, granted.settings)
        if config != self._config:
            self._config = config
            await served.follow(config)
        if served.member is not None:
            await served.member.resync()
        return True

    def _hear(self, failure: str, sentence: str) -> None:
        """Show on the terminal what the client has to say, each sentence once."""
        if failure and failure != self._failure:
            notice(
                f"the run cannot go on: {failure}; {self.state.uid} keeps its state and waits for its client "
                "to be started again"
            )
        if sentence and sentence != self._heard:
            notice(sentence)
        self._failure, self._heard = failure, sentence
