"""A server's leave to serve: every answer of the client to a beat renews it. docs/protocol.md.

A server that the client cannot hear may have lost its slot, or missed a round that others committed. It keeps
all its state and serves nobody until the client has answered again and says what was missed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from distqat.protocol.peer_silence import Heartbeat

HEARTBEAT = Heartbeat()
LEASE_S = HEARTBEAT.silence_s - HEARTBEAT.interval_s
"""Counted from the asking, so it is over before the client has waited long enough to free the slot."""
FRESH_S = HEARTBEAT.doubt_s
"""An answer that was longer on its way does not know what was missed since: it ends no pause."""


def clock_through_sleep() -> float:
    """Monotonic seconds that go on while the machine is suspended, where the system counts them."""
    boot_time: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class ServingLease:
    """Held until `seconds` after the last beat that was answered; once over, until `confirm`."""

    def __init__(self, seconds: float = LEASE_S, clock: Callable[[], float] | None = None) -> None:
        self.now = clock or clock_through_sleep
        self._seconds = seconds
        self._answered = self.now()
        self._over = False
        self._confirmed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether it ran out and was not confirmed since."""
        self._over = self._over or self.silent_s > self._seconds
        return self._over

    @property
    def silent_s(self) -> float:
        """Seconds since the client was last asked something that it answered."""
        return self.now() - self._answered

    def renew(self, asked: float) -> None:
        """The client answered what it was asked at `asked`. Changes nothing once the lease is over."""
        if not self.over:
            self._answered = max(self._answered, asked)

    def confirm(self, asked: float) -> None:
        """Nothing was missing when the client answered: serve again, unless that answer is old already."""
        if self.now() - asked <= FRESH_S:
            self._answered, self._over = asked, False
            self._confirmed.set()

    async def watch(self, ended: Callable[[float], None]) -> None:
        """Tell each time that it is over, with the seconds of silence; until cancelled."""
        while True:
            if not self.over:
                await asyncio.sleep(max(0.01, self._seconds - self.silent_s))
                continue
            self._confirmed.clear()
            ended(self.silent_s)
            await self._confirmed.wait()
