"""How a server gets the state that it serves with: it founds its stage, joins it, or brings it back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from distqat.checkpoint import LoadedShard
from distqat.distributed.network.call_fields import take
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.serving.checkpoint_loop import CheckpointLoop
from distqat.distributed.serving.committed_state import CommittedState, as_local, initial
from distqat.distributed.serving.compute_thread import ComputeThread, Priority
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.replica_state import ReplicaProgress, load_own_state
from distqat.distributed.transfer.snapshot_exchange import (
    FetchedState,
    StageLost,
    fetch_mirrored,
    fetch_newest,
    load_inner_state,
)
from distqat.errors import CheckpointError
from distqat.process import waiting
from distqat.swarm.transport import Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Bootstrap:
    """The way of one replica to its first committed state. `progress` is what it goes on with besides."""

    uid: str
    replica: StageReplica
    compute: ComputeThread
    keeper: CheckpointLoop
    transport: Transport
    coordinator: CoordinatorLink
    calibrate: Callable[[], Awaitable[None]]
    """Returns once the replica's quantizers have seen enough batches."""
    progress: ReplicaProgress = field(default_factory=ReplicaProgress)

    async def found(self) -> CommittedState:
        """The founder publishes round 0."""
        shared = await self._initial()
        await self._tell("zero", {"uid": self.uid, "digest": shared.digest})
        return shared

    async def join(self) -> CommittedState:
        """Everybody else takes the committed state, verified, before it declares itself."""
        began = time.monotonic()
        stage = self.replica.stage
        try:
            with waiting(f"the committed state of stage {stage}, from a replica or a checkpoint"):
                got = await fetch_newest(self.transport, self.coordinator, stage, own_uid=self.uid)
        except StageLost as lost:
            return await self._bring_back(lost)
        assert got is not None
        await self._take(got)
        size = sum(t.nbytes for t in got.shared.tensors().values())
        logger.info(
            "%s took round %d, %.1f MB, in %.2f s from %s",
            self.uid,
            got.shared.round,
            size / 1e6,
            time.monotonic() - began,
            ", ".join(got.givers),
        )
        return got.shared

    async def _bring_back(self, lost: StageLost) -> CommittedState:
        """Restore a lost stage: the state that was decided on, else the newest valid one, else begin anew."""
        shared = await self._restored(lost)
        if shared is None:
            stage = self.replica.stage
            logger.warning("%s: no checkpoint of stage %s is here; it starts anew", self.uid, stage)
            shared = await self._initial()
        fields = {"uid": self.uid, "round": shared.round, "digest": shared.digest}
        answer = await self._tell("restart", fields)
        self.keeper.generation = take(answer, "generation", int)
        return shared

    async def _restored(self, lost: StageLost) -> CommittedState | None:
        """From this host's disk or the client's mirror, whichever is newer."""
        marked = await asyncio.to_thread(self._marked, lost.mark) if lost.mark else None
        if marked is not None:
            return await self._load(marked, whole=True)
        shard = await asyncio.to_thread(self.keeper.newest, lost.oldest)
        here = (shard.manifest.generation, shard.manifest.round) if shard is not None else (-1, -1)
        copy = await fetch_mirrored(self.transport, self.replica.stage, lost.mirror, here)
        if copy is not None:
            await self._take(copy)
            logger.info("%s restored round %d from the client's mirror", self.uid, copy.shared.round)
            return copy.shared
        return await self._load(shard, whole=False) if shard is not None else None

    def _marked(self, mark: str) -> LoadedShard | None:
        try:
            return self.keeper.marked(mark)
        except CheckpointError as error:
            logger.warning("checkpoint skipped: %s; going on from the newest round instead", error)
            return None

    async def _load(self, shard: LoadedShard, *, whole: bool) -> CommittedState:
        """A state from disk; `whole`: with what the replica had beyond the round, else its moments only."""
        shared = CommittedState.from_tensors(shard.manifest.round, shard.shared, {})
        uid = next(iter(shard.private), "")
        own = shard.private.get(uid, {})
        if not whole:
            own = {name: tensor for name, tensor in own.items() if name.startswith("inner/")}

        def load() -> ReplicaProgress:
            as_local(shared).load(self.replica.module)
            self.replica.step = shard.parts[uid].step if uid else shard.manifest.step
            return load_own_state(self.replica, own)

        self.progress = await self._on_replica(load)
        step = self.replica.step
        logger.info("%s restored round %d from %s, step %d", self.uid, shared.round, shard.path, step)
        return shared

    async def _take(self, got: FetchedState) -> None:
        def load() -> None:
            as_local(got.shared).load(self.replica.module)
            load_inner_state(self.replica, got.inner)
            self.replica.step = got.step

        await self._on_replica(load)

    async def _initial(self) -> CommittedState:
        """Initial weights, and quantizers calibrated on real batches."""
        if self.replica.calibrating:
            logger.info("%s founds its stage: waiting for batches to calibrate on", self.uid)
            with waiting(f"batches to calibrate {self.uid} on, which come once every stage has a server"):
                await self.calibrate()
        return await self._on_replica(lambda: initial(self.replica.module))

    async def _tell(self, method: str, fields: dict[str, Any]) -> dict[str, Any]:
        return await self.coordinator.insist(method, {"stage": self.replica.stage, **fields})

    async def _on_replica(self, job: Callable[[], T]) -> T:
        return await self.compute.submit(Priority.CONTROL, "round", job)
