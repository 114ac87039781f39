"""Which replicas a trainer's next step goes over, as failures and successes teach it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from distqat.distributed.network.role_peer import first_of
from distqat.distributed.training.step_driver import StepResult
from distqat.errors import StageUnavailable, SwarmError
from distqat.process import waiting
from distqat.swarm.directory import DirectoryWatch
from distqat.topology.expert import ExpertId
from distqat.topology.routing import Route, Router

logger = logging.getLogger(__name__)

RETRY_S, MAX_RETRY_S = 0.1, 2.0


class RouteChoice:
    """The router of one trainer, with a clock and the directory."""

    def __init__(self, watch: DirectoryWatch, pipeline: int) -> None:
        self._watch = watch
        self._pipeline = pipeline
        self._router = Router()
        self.missing = ""
        """Which stages had no replica when `next` looked last, and why; empty: all had one."""

    async def next(self, stop: asyncio.Event) -> Route | None:
        """A replica for every stage, as soon as there is one; None when asked to stop."""
        with contextlib.ExitStack() as paused:
            wait = None
            while not stop.is_set():
                try:
                    route = self._router.choose(self._watch.snapshot, self._pipeline, time.monotonic())
                    self.missing = ""
                    return route
                except StageUnavailable as error:
                    self.missing = str(error)
                    if wait is None:
                        logger.warning("paused: %s", error)
                        wait = paused.enter_context(waiting(""))
                    wait.what = f"servers: {error}"
                change: asyncio.Future[Any] = asyncio.ensure_future(self._watch.next_change())
                await first_of(stop, change)
                change.cancel()
        return None

    async def failed(self, error: SwarmError, route: Route, attempt: int) -> None:
        """Set the replica aside that an error is about; if nobody is to blame, do not ask again at once."""
        culprit = next((s for s in route.servers if str(s.expert) == error.at), None)
        if culprit is not None:
            self._router.failed(culprit.expert, time.monotonic(), str(error))
        else:
            await asyncio.sleep(min(RETRY_S * attempt, MAX_RETRY_S))

    def taken(self, route: Route, result: StepResult, seconds: float, *, elsewhere: bool) -> None:
        """What a step says of the replicas on its route; `elsewhere`: leave them for others, if there are."""
        rate, now = result.samples / max(seconds, 1e-9), time.monotonic()
        for server in route.servers:
            if elsewhere and len(self._watch.snapshot.serving(server.expert.stage)) > 1:
                self._router.failed(server.expert, now)
            elif str(server.expert) not in result.lost:
                self._router.succeeded(server.expert, rate, now)
        for uid in result.lost:
            self._router.failed(ExpertId.parse(uid), now)
