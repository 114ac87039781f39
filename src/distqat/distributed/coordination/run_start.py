"""How the client of a run starts: anew, from its log, or from what servers can prove."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distqat.checkpoint.finished_note import finished_generation
from distqat.checkpoint.trainer_part import TrainerPart, read_trainer_parts
from distqat.config import Config, changeable, differing_keys, keys_of, structure
from distqat.distributed.assembly.keep_earlier_runs import make_room
from distqat.distributed.assembly.run_notes import note_run
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.resume_decision import (
    RECLAIM_S,
    HeldStates,
    ResumeDecision,
    ResumeQuestion,
    stage_of,
)
from distqat.errors import ConfigError
from distqat.process import RoleParameters
from distqat.protocol.calls.slot_calls import RequestSlot

logger = logging.getLogger(__name__)


@dataclass
class RunStart:
    """What is known when the client starts, and what servers say they hold."""

    config: Config
    resumption: ResumeQuestion
    parts: list[TrainerPart]
    explicit: bool
    continued: bool
    oldest: int
    over: int = -1
    """States of generations up to this one are of a run that came to its end."""
    counts_from: int = 0
    """The first generation of this run, as far as it is known; what is older on disk is another's."""
    appointed: bool = False
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, config: Config, log: CommitLog, parameters: RoleParameters) -> RunStart:
        """Reads what trainers wrote on this host."""
        explicit, locally = parameters.resume, parameters.run_locally
        oldest = max(log.oldest, parameters.oldest) if not log.continued else log.oldest
        over = -1 if explicit or log.continued else finished_generation(config.checkpoint_dir)
        found = [] if locally else read_trainer_parts(config.checkpoint_dir, config.experiment_prefix)
        parts = [part for part in found if part.generation >= oldest and part.generation > over]
        resumption = ResumeQuestion(
            tuple(config.stages),
            [part.mark for part in parts],
            expected=config.world_size * len(config.stages) if explicit else 1 << 30,
            waiting=not locally and (log.continued or bool(parts)),
        )
        counts_from = log.first_generation if locally else max(oldest, over + 1)
        return cls(config, resumption, parts, explicit, log.continued, oldest, over, counts_from)

    async def make_room(self) -> None:
        """Before anything is written: what earlier runs left on this host is kept beside."""
        await asyncio.to_thread(make_room, self.config, self.counts_from, goes_on=self.goes_on)

    async def note_run(
        self,
        data_serves: Callable[[], Awaitable[Any]],
        opened: Callable[[], Awaitable[None]],
        log: CommitLog,
    ) -> None:
        """What makes checkpoints readable without the configuration file. Raises ConfigError.

        After the names of classes are known, and earlier runs are out of the way.
        """
        await data_serves()
        await opened()
        await asyncio.to_thread(note_run, self.config, log.generation, goes_on=self.goes_on)

    @property
    def goes_on(self) -> bool:
        """Whether the run of the log, or the one that was asked for, goes on here."""
        return self.explicit or self.continued

    async def holders_first(self) -> None:
        """Servers that kept their state over a restart of the client ask again for what they hold; first."""
        if self.continued and not self.explicit:
            await asyncio.sleep(max(0.0, self.began + RECLAIM_S - time.monotonic()))

    def offered(self, uid: str, request: RequestSlot, *, founded: bool) -> None:
        """A server got slot `uid`, and said with its request what it holds."""
        finished = self.explicit or self.continued
        offer = HeldStates.of(stage_of(uid), request, oldest=self.oldest, finished=finished)
        if request.live is not None and self.continued:
            self.resumption.cancel()  # the run is still there
        self.resumption.offer(uid, offer, founded=founded)

    def parts_for(self, decision: ResumeDecision | None) -> Sequence[TrainerPart]:
        """What trainers go on from: the parts of the mark, or the newest of each pipeline; newest first."""
        if decision is not None and decision.mark:
            return [part for part in self.parts if part.mark == decision.mark]
        if decision is None and not self.continued:
            return []
        newest = {part.pipeline: part for part in reversed(self.parts)}
        return sorted(newest.values(), key=lambda part: part.order, reverse=True)


def note_settings(log: CommitLog, config: Config) -> None:
    """Compare with what the run was last started with: say what changed, refuse what must not.

    Raises ConfigError naming the keys.
    """
    stages = {stage: structure(config, stage) for stage in config.stages}
    now = json.loads(json.dumps({"structure": stages, "changeable": changeable(config)}))
    before = log.settings
    if before:
        keys = _changed_structure(before["structure"], now["structure"])
        if keys:
            raise ConfigError(
                f"this run cannot go on with another {', '.join(keys)}; set it back, or start a new run: "
                "another --experiment-prefix, or --fresh"
            )
        for line in _changes(before["changeable"], now["changeable"]):
            logger.info("changed since the last start: %s", line)
    log.started(now)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is another value now, and what follows for servers that were not started anew."""
    for key in differing_keys(before, now):
        clients = key in keys_of("client")
        if clients and key not in before:
            continue  # an older release did not note it
        follows = "servers are told" if clients else "a server that was started with another value is refused"
        yield f"{key}: {before.get(key)} -> {now.get(key)} ({follows})"


def _changed_structure(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = set()
    for stage in {**before, **now}:
        if stage not in before or stage not in now:
            return ["model_pipeline.pipeline"]
        for key in differing_keys(before[stage], now[stage]):
            old, new = before[stage].get(key), now[stage].get(key)
            keys.add(f"{key} ({old}, now {new})")
    return sorted(keys)
