"""How a server gets the state that it serves with: it founds its stage, joins it, or brings it back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from distqat.checkpoint import LoadedShard
from distqat.distributed.serving.checkpoint_loop import CheckpointLoop
from distqat.distributed.serving.committed_state import CommittedState, as_local, initial
from distqat.distributed.serving.hosted_replica import HostedReplica
from distqat.distributed.serving.replica_state import ReplicaProgress, load_own_state
from distqat.distributed.serving.slot_state import SlotState
from distqat.distributed.transfer.snapshot_exchange import (
    FetchedState,
    StageLost,
    fetch_mirrored,
    fetch_newest,
    load_inner_state,
)
from distqat.errors import CheckpointError
from distqat.process import waiting
from distqat.protocol.calls.round_calls import FoundStage, RestartStage

logger = logging.getLogger(__name__)


@dataclass
class Bootstrap:
    """The way of one replica to its first committed state. `progress` is what it goes on with besides."""

    host: HostedReplica
    slot: SlotState
    checkpoints: CheckpointLoop
    calibrate: Callable[[], Awaitable[None]]
    """Returns once the replica's quantizers have seen enough batches."""
    progress: ReplicaProgress = field(default_factory=ReplicaProgress)
    prepare: Callable[[], None] = lambda: None
    """Gives a founder's module what the run starts from. Raises ConfigError where this host lacks it."""

    async def found(self) -> CommittedState:
        """The founder publishes round 0."""
        shared = await self._initial()
        await self.host.coordinator.insist(FoundStage(self.host.stage, self.host.uid, shared.digest))
        return shared

    async def join(self) -> CommittedState:
        """Everybody else takes the committed state, verified, before it declares itself."""
        began, host = time.monotonic(), self.host
        try:
            with waiting(f"the committed state of stage {host.stage}, from a replica or a checkpoint"):
                got = await fetch_newest(host.transport, host.coordinator, host.stage, own_uid=host.uid)
        except StageLost as lost:
            return await self._bring_back(lost)
        assert got is not None
        await self._take(got)
        size = sum(t.nbytes for t in got.shared.tensors().values())
        logger.info(
            "%s took round %d, %.1f MB, in %.2f s from %s",
            self.host.uid,
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
            stage = self.host.stage
            logger.warning("%s: no checkpoint of stage %s is here; it starts anew", self.host.uid, stage)
            shared = await self._initial()
        restart = RestartStage(self.host.stage, self.host.uid, shared.round, shared.digest)
        self.slot.generation = (await self.host.coordinator.insist(restart)).generation
        return shared

    async def _restored(self, lost: StageLost) -> CommittedState | None:
        """From this host's disk or the client's mirror, whichever is newer."""
        marked = await asyncio.to_thread(self._marked, lost.restore.mark) if lost.restore.mark else None
        if marked is not None:
            return await self._load(marked, whole=True)
        shard = await asyncio.to_thread(self.checkpoints.newest, lost.restore.oldest)
        here = (shard.manifest.generation, shard.manifest.round) if shard is not None else (-1, -1)
        copy = await fetch_mirrored(self.host.transport, self.host.stage, lost.restore.mirror, here)
        if copy is not None:
            await self._take(copy)
            logger.info("%s restored round %d from the client's mirror", self.host.uid, copy.shared.round)
            return copy.shared
        return await self._load(shard, whole=False) if shard is not None else None

    def _marked(self, mark: str) -> LoadedShard | None:
        try:
            return self.checkpoints.marked(mark)
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
            as_local(shared).load(self.host.replica.module)
            self.host.replica.step = shard.parts[uid].step if uid else shard.manifest.step
            return load_own_state(self.host.replica, own)

        self.progress = await self.host.between_steps(load)
        step = self.host.replica.step
        logger.info("%s restored round %d from %s, step %d", self.host.uid, shared.round, shard.path, step)
        return shared

    async def _take(self, got: FetchedState) -> None:
        def load() -> None:
            as_local(got.shared).load(self.host.replica.module)
            load_inner_state(self.host.replica, got.inner)
            self.host.replica.step = got.step

        await self.host.between_steps(load)

    async def _initial(self) -> CommittedState:
        """Initial weights, and quantizers calibrated on real batches."""
        uid = self.host.uid
        await self.host.between_steps(self.prepare)
        if self.host.replica.calibrating:
            logger.info("%s founds its stage: waiting for batches to calibrate on", uid)
            with waiting(f"batches to calibrate {uid} on, which come once every stage has a server"):
                await self.calibrate()
        return await self.host.between_steps(lambda: initial(self.host.replica.module))
