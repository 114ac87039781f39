"""What the client's log says of the servers in the directory."""

from __future__ import annotations

import logging

from distqat.topology.snapshot import SwarmSnapshot

logger = logging.getLogger(__name__)


class ServersSeen:
    """Logs each expert once, and complete pipelines or missing stages when they change."""

    def __init__(self) -> None:
        self._found: set[str] = set()
        self._line = ""

    def tell(self, snapshot: SwarmSnapshot) -> None:
        """A new snapshot of the directory."""
        for server in snapshot.servers:
            uid = str(server.expert)
            if server.takes_steps and uid not in self._found:
                self._found.add(uid)
                address = server.addresses[0] if server.addresses else server.peer_id
                logger.info("Found expert %s at %s", uid, address)
        complete, missing = snapshot.complete_pipelines(), snapshot.missing()
        line = (
            f"Complete pipelines: {len(complete)} - {complete}"
            if complete
            else f"No complete pipelines found; nobody serves {', '.join(missing)}"
        )
        if line != self._line:
            self._line = line
            logger.info(line)

    def gone(self, uid: str) -> None:
        """It left: it is found again when it comes back."""
        self._found.discard(uid)
