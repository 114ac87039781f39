"""Records and snapshots for the tests of this package."""

from __future__ import annotations

from typing import Any

from distqat.topology.snapshot import ServerRecord, SwarmSnapshot

STAGES = ("front", "back")


def server(stage: str, index: int, throughput: float = 10.0, **changes: Any) -> ServerRecord:
    """A serving replica; `changes` replace any field."""
    values: dict[str, Any] = {
        "peer_id": f"peer-{stage}-{index}",
        "epoch": 1,
        "state": "serving",
        "step": 0,
        "round": 0,
        "config_digest": "c",
        "host": "h",
        "expires_at": 100.0,
        **changes,
    }
    return ServerRecord(stage=stage, index=index, throughput=throughput, **values)


def swarm(*servers: ServerRecord, stages: tuple[str, ...] = STAGES) -> SwarmSnapshot:
    """A snapshot of these servers."""
    return SwarmSnapshot(stages, servers)
