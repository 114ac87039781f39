"""A role's way to the client: found in the directory, dialled again when it died or moved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from distqat.errors import (
    CallTimeout,
    DirectoryUnavailable,
    PeerGone,
    ProtocolMismatch,
    Refused,
    RoleError,
    RunFinished,
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
SAY_EVERY_S = 30.0
ALONE_S = 120.0  # a role that holds nothing of the run has nothing to keep by waiting on; it is started anew
LOOKUP_S = 6.0  # longer than the directory's own bound


class Coordinator:
    """Calls the run's client, whoever that is now."""

    def __init__(self, transport: Transport, directory: Directory) -> None:
        self._transport = transport
        self._directory = directory
        self._link: LinkLike | None = None
        self._last: Address | None = None
        self._began = time.time()

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
        """Return once the client answers; says every half minute that it waits.

        Raises what waiting cannot change: ProtocolMismatch, Refused; RunFinished, when the client said so
        while this role was away; RoleError, when this role, which no client ever knew, is alone for long.
        """
        said, alone_since = -SAY_EVERY_S, None
        while True:
            try:
                await self._connect()
                return
            except (ProtocolMismatch, Refused):
                raise
            except SwarmError as error:
                now = time.monotonic()
                if now - said >= SAY_EVERY_S:
                    logger.info("waiting for the client of this run: %s", error)
                    said = now
                alone = isinstance(error, DirectoryUnavailable) and self._last is None
                alone_since = (now if alone_since is None else alone_since) if alone else None
                if alone_since is not None and now - alone_since > ALONE_S:
                    raise RoleError(
                        f"nobody of this run could be reached for {ALONE_S:g} s ({error}): it is over, or "
                        "this host is cut off; start again when the monitor and the client run"
                    ) from error
                await self._check_finished()
                await asyncio.sleep(RETRY_S)

    async def _check_finished(self) -> None:
        """Raises RunFinished when the run ended after this role began: an older end was of an older run."""
        with contextlib.suppress(DirectoryUnavailable, asyncio.TimeoutError):
            for finish in await within(self._directory.finished(), LOOKUP_S):
                if self._last is not None and finish.owner != self._last.peer:
                    continue  # only the client that we know can say so
                if finish.at >= self._began:
                    raise RunFinished("the run was finished while this role was not connected to the client")

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
