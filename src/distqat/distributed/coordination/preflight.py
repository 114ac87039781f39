"""Nobody gets a slot before the model fits together and the data can be read and fits the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from distqat.config import Config
from distqat.distributed.assembly.model_check import Told, check_batch, check_run

logger = logging.getLogger(__name__)

HOLD_S = 15.0  # how long a server's request is held; less than it waits for an answer


class Preflight:
    """Opens when the checks are over; until then servers are asked to wait.

    In a local run the servers check: they have imported the model's code already, which takes
    the client seconds; there it opens when the data server has made its first batch, `told` to them.
    """

    def __init__(
        self, config: Config, before: Callable[[], Awaitable[None]] | None = None, by_servers: bool = False
    ) -> None:
        """`before` is done when all is well, before it opens; `by_servers`: they check."""
        self.told: Told | None = None
        self._config = config
        self._before = before
        self._by_servers = by_servers
        self._open = asyncio.Event()

    async def check(self, data_ready: Callable[[], Awaitable[dict[str, Any]]] | None) -> None:
        """Check, then open. `data_ready` gives what the data server said, None when servers come first.

        Raises ConfigError: what cannot work, and what to do.
        """
        if not self._by_servers:
            await asyncio.to_thread(check_run, self._config)
        told = (await data_ready()).get("batch") if data_ready is not None else None
        if told is not None and self._by_servers:
            self.told = told
        elif told is not None:
            await asyncio.to_thread(check_batch, self._config, told)
        if self._before is not None:
            await self._before()
        self.open()

    def open(self) -> None:
        """Lets servers have slots."""
        self._open.set()

    async def opened(self) -> None:
        """Wait for it to open."""
        await self._open.wait()

    async def passed(self) -> bool:
        """Wait for it to open, for a while; False: not yet, ask again."""
        try:
            await asyncio.wait_for(self._open.wait(), HOLD_S)
        except asyncio.TimeoutError:
            logger.info("a server waits: the data set is still being opened")
            return False
        return True
