"""What roles of a swarm wait for, as their statuses tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def waits_of(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """`role`, `what` and `since` (Unix time) of each wait, from `waits` of the client and from `servers`."""
    servers = [server for server in status.get("servers") or [] if server.get("waits_for")]
    return [
        *(status.get("waits") or []),
        *(
            {"role": server.get("uid"), "what": server["waits_for"], "since": server.get("waits_since", 0.0)}
            for server in servers
        ),
    ]
