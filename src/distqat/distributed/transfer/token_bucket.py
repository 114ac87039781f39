"""A rate limit as arithmetic on times: who wants to send is told how long to wait."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """`rate` units per second over time; after a pause, `burst` of them at once.

    In any stretch of T seconds at most `rate * T + burst` are let through, and the one that was under way.
    `rate` None: no limit. `clock` gives monotonic seconds.
    """

    def __init__(self, rate: float | None, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._next = clock() - (burst / rate if rate else 0.0)  # when all that was taken is paid for

    def take(self, amount: float, patience_s: float) -> float | None:
        """Seconds to wait before `amount` may be sent; it is taken at once, so others queue behind it.

        None, and nothing is taken, if that would be more than `patience_s`.
        """
        if self._rate is None:
            return 0.0
        now = self._clock()
        begin = max(self._next, now - self._burst / self._rate)
        wait = max(0.0, begin - now)
        if wait > patience_s:
            return None
        self._next = begin + amount / self._rate
        return wait
