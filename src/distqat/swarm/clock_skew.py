"""How far this machine's clock is from those of the peers that it joins. Only records depend on it.

Records of the DHT end at a moment of the wall clock: where clocks differ by more than their lease, a peer
sees an empty swarm, and others see nothing of it. So it is measured at the join, and named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from distqat.errors import ClockSkew

MAX_SKEW_S = 3.0
ASKED = 5  # of the initial peers

Ask = Callable[[str], Awaitable[float | None]]
"""The wall clock of a peer; None where it does not answer."""


@dataclass(frozen=True)
class ClockReading:
    """Seconds by which our clock is ahead of a peer's, to plus or minus `error_s`."""

    peer: str
    ahead_s: float
    error_s: float

    @property
    def surely_s(self) -> float:
        """What of it cannot be the way of the question and the answer."""
        return max(0.0, abs(self.ahead_s) - self.error_s)


async def read_clocks(
    peers: Sequence[str],
    ask: Ask,
    *,
    wall: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> list[ClockReading]:
    """Our clock against those of the peers that answer; the middle of the round trip counts."""

    async def one(peer: str) -> ClockReading | None:
        asked, began = wall(), monotonic()
        theirs = await ask(peer)
        half = (monotonic() - began) / 2
        return None if theirs is None else ClockReading(peer, asked + half - theirs, half)

    readings = await asyncio.gather(*(one(peer) for peer in peers[:ASKED]))
    return [reading for reading in readings if reading is not None]


def check_clock(readings: Sequence[ClockReading], bound_s: float = MAX_SKEW_S) -> None:
    """Raises ClockSkew when this clock is off from the middle one of those that were read."""
    if not readings:
        return
    middle = median(reading.ahead_s for reading in readings)
    nearest = min(readings, key=lambda reading: abs(reading.ahead_s - middle))
    if nearest.surely_s <= bound_s:
        return
    others = f"{len(readings)} initial peers" if len(readings) > 1 else f"the initial peer {nearest.peer}"
    raise ClockSkew(
        f"the clock of this machine is {abs(nearest.ahead_s):.1f} s {'ahead of' if middle > 0 else 'behind'} "
        f"that of {others}; at most {bound_s:g} s work: set the clocks by NTP and start again"
    )
