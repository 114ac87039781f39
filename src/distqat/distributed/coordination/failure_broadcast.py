"""Before a client ends for good: every server hears why the run cannot go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

from distqat.failures import describe

FAREWELL_S = 2.0  # two beats


class FailureBroadcast:
    """What the answers to beats say once the run has failed."""

    def __init__(self) -> None:
        self._why = ""
        self._unaware: set[str] = set()
        self._all_know = asyncio.Event()

    async def tell(self, error: Exception, servers: Collection[str]) -> None:
        """Wait until each of `servers` (UIDs) has asked, for two seconds at most."""
        self._why, self._unaware = describe(error), set(servers)
        if self._unaware:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_know.wait(), FAREWELL_S)

    def said_to(self, uid: str) -> str:
        """Why the run has failed, for the answer to a beat of `uid`; empty while it has not."""
        if self._why:
            self._unaware.discard(uid)
            if not self._unaware:
                self._all_know.set()
        return self._why
