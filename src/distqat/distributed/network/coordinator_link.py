"""A role's way to the client: found in the directory, dialled again when it died or moved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TypeVar

from distqat.distributed.network.other_runs import LOOKUP_S, OtherRuns
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
from distqat.process import waiting
from distqat.protocol.call_schema import Call
from distqat.protocol.hop import PeerAddress
from distqat.swarm.call_messages import ask
from distqat.swarm.deadline import within
from distqat.swarm.directory import Directory
from distqat.swarm.transport import LinkLike, Transport

logger = logging.getLogger(__name__)

A = TypeVar("A")
AWAY = (PeerGone, CallTimeout, StageUnavailable, DirectoryUnavailable)
"""Errors that say that the client cannot be reached now."""
RETRY_S = 0.5
CALL_TIMEOUT = 15.0
SAY_EVERY_S = 30.0
ALONE_S = 120.0  # a role that holds nothing of the run has nothing to keep by waiting on; it is started anew


class _Outlook:
    """Whether a role that no client ever knew has something to wait for."""

    def __init__(self, directory: Directory) -> None:
        self._others = OtherRuns(directory)
        self._alone_since: float | None = None

    async def check(self, error: SwarmError, now: float) -> None:
        """The client could not be reached. Raises RoleError, ConfigError."""
        if not isinstance(error, DirectoryUnavailable):
            self._alone_since = None
            await self._others.check(now)
            return
        self._alone_since = now if self._alone_since is None else self._alone_since
        if now - self._alone_since > ALONE_S:
            raise RoleError(
                f"nobody of this run could be reached for {ALONE_S:g} s ({error}): it is over, or "
                "this host is cut off; start again when the monitor and the client run"
            ) from error


class CoordinatorLink:
    """Calls the run's client, whoever that is now."""

    def __init__(self, transport: Transport, directory: Directory) -> None:
        self._transport = transport
        self._directory = directory
        self._link: LinkLike | None = None
        self._last: PeerAddress | None = None
        self._began = time.time()

    @property
    def connected(self) -> bool:
        """Whether there is a link to the client now."""
        return self._link is not None and self._link.alive

    async def ask(self, request: Call[A], *, timeout: float = CALL_TIMEOUT) -> A:
        """The client's answer. StageUnavailable when nobody is found, or its error."""
        return await ask(await self._connect(), request, timeout=timeout)

    async def insist(self, request: Call[A], *, timeout: float = CALL_TIMEOUT) -> A:
        """Ask until the client answers: while it is away, wait for it. Raises only what the client says."""
        while True:
            try:
                return await self.ask(request, timeout=timeout)
            except AWAY as error:
                logger.warning("%s: the client does not answer (%s); waiting for it", request.method, error)
                await self.wait()

    async def wait(self) -> None:
        """Return once the client answers; says every half minute that it waits.

        Raises what waiting cannot change: ProtocolMismatch, Refused; RunFinished, when the client said so
        while this role was away; and for a role that no client ever knew RoleError, when it is alone for
        long, and ConfigError, when other runs are there and its own is not.
        """
        said, outlook = -SAY_EVERY_S, _Outlook(self._directory)
        with waiting(f"the client of run {self._directory.run!r}") as wait:
            while True:
                try:
                    await self._connect()
                    return
                except (ProtocolMismatch, Refused):
                    raise
                except SwarmError as error:
                    wait.what = f"the client of run {self._directory.run!r} ({error})"
                    now = time.monotonic()
                    if now - said >= SAY_EVERY_S:
                        logger.info("waiting for the client of this run: %s", error)
                        said = now
                    if self._last is None:
                        await outlook.check(error, now)
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

    async def _addresses(self) -> list[PeerAddress]:
        """Where the client may be. After a partition the way to it may be back before the directory is."""
        known = [] if self._last is None else [self._last]
        try:
            found = await within(self._directory.roles("client"), LOOKUP_S)
        except (DirectoryUnavailable, asyncio.TimeoutError):
            if not known:
                raise
            return known
        return found + [address for address in known if address.peer not in {each.peer for each in found}]
