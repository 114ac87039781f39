"""What the directory held at one moment. An empty snapshot is an empty swarm, never a failed look-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from distqat.topology.expert import ExpertId

ServerState = Literal["joining", "calibrating", "serving", "unknown", "draining"]

# A calibrating replica takes batches like any other; it only has not fixed its quantizers yet.
_TAKES_STEPS = ("calibrating", "serving")


@dataclass(frozen=True)
class ServerRecord:
    """One server as it announced itself."""

    peer_id: str
    stage: str
    index: int
    epoch: int  # of the slot grant: a newer one is another holder of the slot
    state: ServerState
    throughput: float  # samples per second; 0: not measured yet
    step: int
    round: int
    config_digest: str
    host: str  # identity of the physical host: same host means Unix sockets
    addresses: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    expires_at: float = 0.0  # DHT time

    @property
    def expert(self) -> ExpertId:
        """The replica that this server is."""
        return ExpertId(self.stage, self.index)

    @property
    def takes_steps(self) -> bool:
        """Whether a trainer may route a step over it."""
        return self.state in _TAKES_STEPS


@dataclass(frozen=True)
class SwarmSnapshot:
    """All servers of a run, and its stages in pipeline order."""

    stages: tuple[str, ...]
    servers: tuple[ServerRecord, ...] = ()

    def replicas(self, stage: str) -> tuple[ServerRecord, ...]:
        """All servers of `stage` in any state by index; of two in one slot the newer holder counts."""
        newest: dict[int, ServerRecord] = {}
        for server in self.servers:
            if server.stage != stage:
                continue
            other = newest.get(server.index)
            if other is None or _age(other) < _age(server):
                newest[server.index] = server
        return tuple(newest[index] for index in sorted(newest))

    def serving(self, stage: str) -> tuple[ServerRecord, ...]:
        """Servers of `stage` that take steps (serving or calibrating), by index."""
        return tuple(server for server in self.replicas(stage) if server.takes_steps)

    def find(self, expert: ExpertId) -> ServerRecord | None:
        """The server in that slot, in any state."""
        return next((s for s in self.replicas(expert.stage) if s.index == expert.index), None)

    def missing(self) -> tuple[str, ...]:
        """Stages that nobody serves, in pipeline order."""
        return tuple(stage for stage in self.stages if not self.serving(stage))

    def complete_pipelines(self) -> list[int]:
        """Ids 0..n-1, n being the replicas of the rarest stage.

        A trainer may use any replica, so a pipeline is a count and not a set of servers: ids stay as they are
        when a server is replaced, and the highest goes first when one is lost.
        """
        return list(range(min((len(self.serving(stage)) for stage in self.stages), default=0)))


def _age(server: ServerRecord) -> tuple[int, float, str]:
    return server.epoch, server.expires_at, server.peer_id
