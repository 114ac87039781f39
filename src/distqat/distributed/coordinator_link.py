"""A role's way to the client: found in the directory, dialled again when it died or moved."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from distqat.errors import (
    CallTimeout,
    DirectoryUnavailable,
    PeerGone,
    ProtocolMismatch,
    Refused,
    StageUnavailable,
    SwarmError,
)
from distqat.swarm.deadline import within
from distqat.swarm.directory import Directory
from distqat.swarm.frame import Message
from distqat.swarm.link import Address
from distqat.swarm.transport import LinkLike, Transport

logger = logging.getLogger(__name__)

AWAY = (PeerGone, CallTimeout, StageUnavailable, DirectoryUnavailable)
"""Errors that say that the client cannot be reached now."""
RETRY_S = 0.5
CALL_TIMEOUT = 15.0
LOOKUP_S = 6.0  # longer than the directory's own bound


class Coordinator:
    """Calls the run's client, whoever that is now."""

    def __init__(self, transport: Transport, directory: Directory) -> None:
        self._transport = transport
        self._directory = directory
        self._link: LinkLike | None = None
        self._last: Address | None = None

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.alive

    async def call(
        self, method: str, fields: dict[str, Any], *, timeout: float = CALL_TIMEOUT
    ) -> dict[str, Any]:
        """Call the client; its answer's fields. StageUnavailable when nobody is found, or its error."""
        link = await self._connect()
        reply = await link.call(method, Message(fields), timeout=timeout, urgent=True)
        return dict(reply.fields)

    async def insist(
        self, method: str, fields: dict[str, Any], *, timeout: float = CALL_TIMEOUT
    ) -> dict[str, Any]:
        """Call until the client answers: while it is away, wait for it. Raises only what the client says."""
        while True:
            try:
                return await self.call(method, fields, timeout=timeout)
            except AWAY as error:
                logger.warning("%s: the client does not answer (%s); waiting for it", method, error)
                await self.wait()

    async def wait(self) -> None:
        """Return once the client answers. Raises ProtocolMismatch or Refused: waiting changes neither."""
        said = False
        while True:
            try:
                await self._connect()
                return
            except (ProtocolMismatch, Refused):
                raise
            except SwarmError as error:
                if not said:
                    logger.info("waiting for the client of this run: %s", error)
                    said = True
                await asyncio.sleep(RETRY_S)

    async def _connect(self) -> LinkLike:
        if self._link is not None and self._link.alive:
            return self._link
        last: SwarmError = StageUnavailable("no client of this run is in the directory; start one")
        for address in await self._addresses():
            try:
                self._link = await self._transport.link(address)
                self._last = address
                return self._link
            except SwarmError as error:  # a record of a client that is gone; the next may live
                last = error
        raise last

    async def _addresses(self) -> list[Address]:
        """Where the client may be. After a partition the way to it may be back before the directory is."""
        known = [] if self._last is None else [self._last]
        try:
            found = await within(self._directory.roles("client"), LOOKUP_S)
        except (DirectoryUnavailable, asyncio.TimeoutError):
            if not known:
                raise
            return known
        return found + [address for address in known if address.peer not in {each.peer for each in found}]
