"""A replica with the compute thread that it runs on and the connections of its server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.replica import StageReplica
from distqat.protocol.hop import Hop
from distqat.swarm.transport import Transport

T = TypeVar("T")


@dataclass(frozen=True)
class HostedReplica:
    """What its bootstrap and its rounds work with. `hop` is the replica's UID and address."""

    hop: Hop
    replica: StageReplica
    compute: ComputeThread
    transport: Transport
    coordinator: CoordinatorLink

    @property
    def uid(self) -> str:
        """As in the directory: `{stage}.0.{index}.0`."""
        return self.hop.uid

    @property
    def stage(self) -> str:
        """The name of its stage."""
        return self.replica.stage

    async def between_steps(self, job: Callable[[], T]) -> T:
        """Run `job` on the compute thread, before waiting work of inner steps; its result."""
        return await self.compute.submit(Priority.CONTROL, "round", job)
