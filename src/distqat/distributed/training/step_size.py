"""How many samples a step has: what the client says, unless a server of the route takes no more."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from distqat.topology.snapshot import ServerRecord

logger = logging.getLogger(__name__)

BATCH_SIZE = "batch_size"
"""In the metrics of a server's record: samples per step that it takes at most."""


class StepSize:
    """Says in the log when it changes."""

    def __init__(self, configured: int) -> None:
        self._configured = self._told = configured

    def over(self, servers: Sequence[ServerRecord]) -> int:
        """Samples per step over these servers."""
        bounds = {str(server.expert): server.metrics.get(BATCH_SIZE, math.inf) for server in servers}
        count = max(1, int(min([self._configured, *bounds.values()])))
        if count != self._told:
            self._told = count
            who = ", ".join(uid for uid, bound in bounds.items() if bound < self._configured)
            logger.info("steps of %d samples%s", count, f": {who} takes no more" if who else "")
        return count
