"""Waits that say what they are for: after ten seconds in the log, at the terminal and in the status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distqat.process.launcher_notices import notice, tell_wait

SAY_AFTER_S = 10.0
SAY_AGAIN_S = 60.0


@dataclass
class AnnouncedWait:
    """Something that this role waits for. `since`: Unix time, for people."""

    what: str
    since: float
    told: bool = False

    def fields(self, role: str) -> dict[str, Any]:
        """For a status: who waits for what, since when."""
        return {"role": role, "what": self.what, "since": self.since}


_waits: list[AnnouncedWait] = []


@contextmanager
def waiting(what: str) -> Iterator[AnnouncedWait]:
    """Around a wait for somebody else, in an event loop; `what` completes "waiting for ...".

    The text may be changed while it waits (`wait.what = ...`), when more is known.
    """
    loop, wait = asyncio.get_running_loop(), AnnouncedWait(what, time.time())
    began, timers = loop.time(), list[asyncio.TimerHandle]()

    def say() -> None:
        wait.told = True
        notice(f"waiting for {wait.what}, since {loop.time() - began:.0f} s")
        _tell_newest()
        timers[:] = [loop.call_later(SAY_AGAIN_S, say)]

    timers.append(loop.call_later(SAY_AFTER_S, say))
    _waits.append(wait)
    try:
        yield wait
    finally:
        timers[0].cancel()
        _waits.remove(wait)
        if wait.told:
            _tell_newest()


def told_wait() -> AnnouncedWait | None:
    """The last wait that was told of and is not over."""
    return next((wait for wait in reversed(_waits) if wait.told), None)


def _tell_newest() -> None:
    newest = told_wait()
    tell_wait(newest.what if newest else "", newest.since if newest else 0.0)
