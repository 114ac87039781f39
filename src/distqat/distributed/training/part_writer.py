"""A trainer's part of a checkpoint step, written while training goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from distqat.checkpoint.trainer_part import TrainerPart, write_trainer_part
from distqat.config import Config
from distqat.distributed.training.checkpoint_schedule import TrainerProgress
from distqat.failures import describe
from distqat.process import notice
from distqat.protocol.calls.step_calls import StageStanding


class PartWriter:
    """Writes one part at a time; a mark that comes meanwhile is not written, and so is none to go on from."""

    def __init__(self, config: Config, pipeline: int, life: int) -> None:
        self._config = config
        self._pipeline = pipeline
        self._life = life
        self._writing: asyncio.Future[None] | None = None
        self._warned = False

    def begin(
        self,
        mark: str,
        standing: Iterable[StageStanding],
        count: TrainerProgress,
        position: Mapping[str, Any] | None,
    ) -> None:
        """The step `mark` was committed; `position` is where the data goes on."""
        if self._writing is not None and not self._writing.done():
            return
        part = TrainerPart(
            run=self._config.experiment_prefix,
            generation=max((each.generation for each in standing), default=0),
            pipeline=self._pipeline,
            life=self._life,
            step=count.step,
            taken=count.taken,
            mark=mark,
            samples=count.samples,
            data=position,
            scaler=count.scaler,
            written_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        self._writing = asyncio.ensure_future(self._write(part))

    async def finish(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    async def _write(self, part: TrainerPart) -> None:
        try:
            await asyncio.to_thread(write_trainer_part, self._config.checkpoint_dir, part)
            self._warned = False
        except Exception as error:  # noqa: BLE001  whatever the disk does, training goes on
            if not self._warned:  # once: a full disk stays full for a while
                notice(f"checkpoint step {part.mark} is not on disk: {describe(error)}; training goes on")
            self._warned = True
