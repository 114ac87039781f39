"""Writes a replica's state to disk beside training: after each round, and at each checkpoint step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from torch import Tensor

from distqat.checkpoint import CheckpointStore, LoadedShard, ShardState
from distqat.checkpoint.finished_note import finished_generation, note_finished
from distqat.config import Config, structure, structure_digest
from distqat.distributed.serving.committed_state import CommittedState
from distqat.errors import CheckpointError
from distqat.failures import describe
from distqat.process import notice
from distqat.protocol.calls.slot_calls import HeldOnDisk, StagesOnDisk
from distqat.writable_folder import free_bytes

logger = logging.getLogger(__name__)

STATES = 5  # three rounds, what marks stand on, and the one that is being written


@dataclass(frozen=True)
class StateToWrite:
    """A committed state, and what one replica alone has at `step`: a copy that is still being made.

    `mark` names a checkpoint step; without, it is the state after a round.
    """

    committed: CommittedState
    own: Awaitable[dict[str, Tensor]]
    step: int
    generation: int
    mark: str | None = None


class CheckpointLoop:
    """Writes states in their order; of rounds that wait only the newest, of checkpoint steps all."""

    def __init__(self, config: Config, stage: str, uid: str) -> None:
        self.saved = ""
        """The newest checkpoint step that is on disk, by its mark."""
        self.trouble = ""
        """Why states cannot be written at the moment; "" while they can."""
        self._config = config
        self._stage = stage
        self._uid = uid
        self._store = store_of(config)
        self._waiting: list[StateToWrite] = []
        self._writing: asyncio.Task[None] | None = None
        self._room_seen = False

    def save(self, state: StateToWrite) -> None:
        """Have a state written soon. Its tensors are never changed, so training goes on meanwhile."""
        if state.mark is None:
            self._waiting = [other for other in self._waiting if other.mark is not None]
        self._waiting.append(state)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_all())

    def newest(self, oldest: int) -> LoadedShard | None:
        """The newest valid state of the stage on this host, of generation `oldest` or later."""
        shard = self._store.newest_valid(
            self._stage,
            structure_digest(self._config, self._stage),
            agreement=structure(self._config, self._stage),
            expert=self._uid,
        )
        return shard if shard is not None and shard.manifest.generation >= oldest else None

    def marked(self, mark: str) -> LoadedShard:
        """The state of a checkpoint step. Raises CheckpointError when it is not here, or broken."""
        return self._store.load_mark(self._stage, mark, structure_digest(self._config, self._stage))

    async def flush(self) -> None:
        """Return when everything handed over is on disk, or has failed."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def finished(self, generation: int) -> None:
        """The run is over: its states are no place to go on from by default."""
        await self.flush()
        try:
            await asyncio.to_thread(note_finished, self._config.checkpoint_dir, generation)
        except CheckpointError as error:
            logger.warning("%s; the next start will go on from this run unless told otherwise", error)

    async def _write_all(self) -> None:
        while self._waiting:
            state = self._waiting.pop(0)
            try:
                await asyncio.to_thread(self._write, state, await state.own)
                self.trouble = ""
            except Exception as error:  # noqa: BLE001  whatever the disk does, training goes on
                if not self.trouble:  # once: a full disk stays full for a while
                    round, why = state.committed.round, describe(error)
                    notice(f"round {round} is not on disk: {why}; training goes on")
                self.trouble = describe(error)
            self.saved = state.mark or self.saved  # or given up: the trainer need not wait for it

    def _write(self, state: StateToWrite, own: dict[str, Tensor]) -> None:
        tensors = state.committed.tensors()
        self._look_at_room(tensors, own)
        self._store.write(
            self._stage,
            ShardState(
                generation=state.generation,
                round=state.committed.round,
                step=state.step,
                digest=state.committed.digest,
                shared=tensors,
                agreement=structure(self._config, self._stage),
                agreement_digest=structure_digest(self._config, self._stage),
                counters={"step": state.step},
                private={self._uid: own} if own else {},
                mark=state.mark,
            ),
        )
        self._store.prune()

    def _look_at_room(self, *states: Mapping[str, Tensor]) -> None:
        """Once, before the first state is written: whether as many as are kept will find room."""
        if self._room_seen:
            return
        self._room_seen = True
        folder, size = self._config.checkpoint_dir, sum(t.nbytes for s in states for t in s.values())
        free = free_bytes(folder)
        if free is not None and free < STATES * size:
            notice(
                f"{folder.absolute()} has {free / 1e6:.1f} MB left, and states of stage {self._stage} take "
                f"about {STATES * size / 1e6:.1f} MB: make room, or give another param_mirror.checkpoint_dir"
            )


def store_of(config: Config) -> CheckpointStore:
    """The checkpoint folder of a run on this host."""
    return CheckpointStore(config.checkpoint_dir, config.experiment_prefix, stages=tuple(config.stages))


def held_on_disk(config: Config) -> HeldOnDisk:
    """What this host could bring back, by stage.

    Reads manifests, not tensors; whoever restores one verifies it.
    """
    store = store_of(config)
    stages = {}
    for stage in config.stages:
        digest = structure_digest(config, stage)
        marks = store.marks(stage, digest)
        stages[stage] = StagesOnDisk(
            tuple(store.held(stage, digest)),
            tuple((m.mark, m.generation, m.round, m.digest, m.step) for m in marks),
        )
    return HeldOnDisk(finished_generation(config.checkpoint_dir), stages)
