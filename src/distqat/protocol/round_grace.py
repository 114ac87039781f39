"""How long a round waits for members that are not ready: learnt from earlier arrivals, no fixed guess."""

from __future__ import annotations

from collections import deque
from statistics import median


class RoundGrace:
    """Waiting time after the first arrival: median of earlier delays plus a multiple of their spread.

    The spread is the median absolute deviation. Before anything was measured the others get as long again as
    the first member took for its inner steps.
    """

    def __init__(self, spreads: float, *, floor_s: float = 1.0, remembered: int = 64) -> None:
        self._spreads = spreads
        self._floor_s = floor_s
        self._delays: deque[float] = deque(maxlen=remembered)

    def seconds(self, first_took_s: float) -> float:
        """How long to wait after the first arrival, which took `first_took_s` for its inner steps."""
        if len(self._delays) < 3:
            return max(self._floor_s, first_took_s)
        middle = median(self._delays)
        spread = median(abs(delay - middle) for delay in self._delays)
        return max(self._floor_s, middle + self._spreads * spread)

    def arrived(self, delay_s: float) -> None:
        """A member that is not the first became ready `delay_s` after the first."""
        self._delays.append(delay_s)
