"""What the client's log says of the servers in the directory."""

from __future__ import annotations

import contextlib
import logging

from distqat.process import AnnouncedWait, waiting
from distqat.topology.snapshot import SwarmSnapshot

logger = logging.getLogger(__name__)


class ServersSeen:
    """Logs each expert once, and complete pipelines or missing stages when they change.

    While there is no complete pipeline the client waits for servers, and says so where waits are shown.
    """

    def __init__(self) -> None:
        self._found: set[str] = set()
        self._line = ""
        self._open = contextlib.ExitStack()
        self._wait: AnnouncedWait | None = None

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
        if complete:
            self.close()
            return
        if self._wait is None:
            self._wait = self._open.enter_context(waiting(""))
        self._wait.what = f"servers: nobody serves {', '.join(missing)}"

    def gone(self, uid: str) -> None:
        """It left: it is found again when it comes back."""
        self._found.discard(uid)

    def close(self) -> None:
        """Nobody is waited for any more."""
        self._open.close()
        self._wait = None
