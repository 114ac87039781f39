"""A role tells the client of peers that it could not connect to: the client looks into it."""

from __future__ import annotations

import asyncio
import contextlib

from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.errors import SwarmError
from distqat.protocol.calls.slot_calls import ReportUnreached
from distqat.protocol.hop import PeerAddress
from distqat.swarm.transport import Transport

EVERY_S = 5.0
MAX_PEERS = 64
MAX_TEXT = 500


class UnreachablePeers:
    """Collects what the transport could not connect to since the last report."""

    def __init__(self, transport: Transport, coordinator: CoordinatorLink, host: str) -> None:
        self._coordinator = coordinator
        self._host = host
        self._failed: dict[str, str] = {}
        self._any = asyncio.Event()
        transport.on_unreached = self._note

    async def report(self) -> None:
        """Until cancelled; what the client does not hear now it hears when the next dial fails."""
        while True:
            await self._any.wait()
            self._any.clear()
            failed, self._failed = self._failed, {}
            with contextlib.suppress(SwarmError):  # the client is away, or it is what cannot be reached
                await self._coordinator.ask(ReportUnreached(self._host, failed))
            await asyncio.sleep(EVERY_S)

    def _note(self, to: PeerAddress, why: str) -> None:
        if len(self._failed) < MAX_PEERS:
            self._failed[to.peer] = why[:MAX_TEXT]
        self._any.set()
