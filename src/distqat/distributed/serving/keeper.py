"""Writes the committed state of a replica to disk after each round, beside training."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from torch import Tensor

from distqat.checkpoint import CheckpointStore, LoadedShard, ShardState
from distqat.config import Config, agreement, agreement_digest
from distqat.distributed.serving.shared import Shared
from distqat.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Moment:
    """What there is to write: the committed state, and this replica's inner moments at `step`."""

    shared: Shared
    inner: dict[str, Tensor]
    step: int


class Keeper:
    """Keeps the newest committed state; while one is being written only the newest waits for its turn."""

    def __init__(self, config: Config, stage: str, uid: str, generation: int) -> None:
        self._config = config
        self._stage = stage
        self._uid = uid
        self.generation = generation
        self._store = CheckpointStore(
            config.checkpoint_dir, config.experiment_prefix, stages=tuple(config.stages)
        )
        self._next: _Moment | None = None
        self._writing: asyncio.Task[None] | None = None
        self._warned = False

    def keep(self, shared: Shared, inner: dict[str, Tensor], step: int) -> None:
        """Have a state written soon. Its tensors are never changed, so training goes on meanwhile."""
        self._next = _Moment(shared, inner, step)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_all())

    def newest(self, oldest: int) -> LoadedShard | None:
        """The newest valid state of the stage on this host, of generation `oldest` or later."""
        digest = agreement_digest(self._config, self._stage)
        shard = self._store.newest_valid(
            self._stage, digest, agreement=agreement(self._config, self._stage), expert=self._uid
        )
        return shard if shard is not None and shard.manifest.generation >= oldest else None

    async def flush(self) -> None:
        """Return when everything handed over is on disk, or has failed."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def _write_all(self) -> None:
        while self._next is not None:
            moment, self._next = self._next, None
            try:
                await asyncio.to_thread(self._write, moment)
                self._warned = False
            except CheckpointError as error:
                if not self._warned:  # once: a full disk stays full for a while
                    logger.warning(
                        "round %d is not on disk: %s; training goes on", moment.shared.round, error
                    )
                self._warned = True

    def _write(self, moment: _Moment) -> None:
        shared = moment.shared
        self._store.write(
            self._stage,
            ShardState(
                generation=self.generation,
                round=shared.round,
                step=moment.step,
                digest=shared.digest,
                shared=shared.tensors(),
                agreement=agreement(self._config, self._stage),
                agreement_digest=agreement_digest(self._config, self._stage),
                counters={"step": moment.step},
                private={self._uid: moment.inner} if moment.inner else {},
            ),
        )
        self._store.prune()
