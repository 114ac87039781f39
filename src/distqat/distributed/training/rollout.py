"""Batches of a task that acts: the model is asked in this process or over the swarm, and plays."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from distqat.config import Config
from distqat.data.order import permutation
from distqat.data.serving.batch_client import LeasedBatch
from distqat.distributed.assembly.stage_factory import build_module, stage_kwargs
from distqat.distributed.training.batch_source import Ask
from distqat.models import run_stages, sample_input
from distqat.tasks.base import Batch, Experience, Player, Task

logger = logging.getLogger(__name__)


class RolloutFeed:
    """Lets the model play whenever there is nothing left to train on.

    Every epoch over a rollout has an order of its own. A batch that is released, because its step was never
    committed, comes again first. Rollouts start afresh when a trainer starts: they are part of no checkpoint,
    as their samples would be of a policy that is gone.
    """

    def __init__(
        self,
        task: Task,
        ask: Ask,
        *,
        seed: int,
        pipeline: int,
        start: int = 0,
        told: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        """`start`: batches that the pipeline took in earlier lives; other episodes are played then.

        `told` gets a record of every rollout.
        """
        self.last_position: dict[str, Any] | None = None
        self.account: dict[str, Any] = {}
        self._task = task
        self._ask = ask
        self._told = told
        self._key = (seed, pipeline, start)
        self._player: Player | None = None
        self._played = 0
        self._batch: Batch | None = None
        self._left: deque[tuple[int, list[int]]] = (
            deque()
        )  # epoch, and the samples of it that are still to come
        self._ids = itertools.count()
        self._leases: dict[int, tuple[int, list[int], Batch]] = {}
        self._back: deque[tuple[int, list[int], Batch]] = deque()

    async def next(self, count: int) -> LeasedBatch:
        """At most `count` samples; plays first if all are used up. Raises what asking the model raises."""
        if self._back:
            epoch, chosen, source = self._back.popleft()
        else:
            if not self._left:
                self._take(await self._play())
            assert self._batch is not None
            source = self._batch
            epoch, order = self._left[0]
            chosen = order[:count]
            del order[:count]
            if not order:
                self._left.popleft()
        lease = next(self._ids)
        self._leases[lease] = epoch, chosen, source
        return LeasedBatch(lease, _rows(source, chosen), epoch, ())

    async def consumed(self, batch_id: int) -> None:
        """The samples of a batch count as trained on."""
        del self._leases[batch_id]

    async def release(self, batch_id: int) -> None:
        """The batch comes again: its step was given up."""
        self._back.append(self._leases.pop(batch_id))

    async def close(self) -> None:
        """Forgets what was handed out."""
        self._leases.clear()

    async def _play(self) -> Experience:
        """One rollout. Environments run in a thread: whoever else lives in this process must be heard."""
        if self._player is None:
            _, pipeline, start = self._key
            self._player = await asyncio.to_thread(self._task.player, pipeline, start)
        rollout = self._player.rollout()
        inputs = await asyncio.to_thread(next, rollout)
        while True:
            outputs = {name: tensor.cpu() for name, tensor in (await self._ask(inputs)).items()}
            said = await asyncio.to_thread(_send, rollout, outputs)
            if isinstance(said, Experience):
                return said
            inputs = said

    def _take(self, experience: Experience) -> None:
        seed, pipeline, _ = self._key
        size, returns = experience.batch.size, experience.returns
        self._batch = experience.batch
        for _ in range(experience.epochs):
            self._left.append((self._played, permutation(seed, self._played, pipeline, size)))
            self._played += 1
        if returns:
            mean = sum(returns) / len(returns)
            ended = {"samples": size, "episodes": len(returns), "return": mean}
            self._told({"event": "rollout", "pipeline": self._key[1], **ended})
            logger.info("played %d samples; %d episodes ended, mean return %.1f", size, len(returns), mean)


def check_play(config: Config, task: Task) -> None:
    """Find at start what would fail in the first rollout. Raises MissingExtra, TaskError, ModelError."""
    first = config.model_pipeline.pipeline[0].model_name
    with torch.device("meta"), torch.no_grad():
        inputs = sample_input(first, 2, stage_kwargs(config, config.stages[0]))
        if inputs is None:  # a model that does not say what it takes
            return
        stages = (build_module(config, stage, quantize=False).eval() for stage in config.stages)
        outputs = run_stages(stages, inputs)
    task.check(inputs, outputs)


def _send(rollout: Any, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor] | Experience:
    """What the rollout asks next, or what it gave."""
    try:
        inputs: Mapping[str, Tensor] = rollout.send(outputs)
        return inputs
    except StopIteration as ended:
        experience: Experience = ended.value
        return experience


def _rows(batch: Batch, chosen: list[int]) -> Batch:
    rows = torch.tensor(chosen)
    inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
    return Batch(inputs, {name: tensor[rows] for name, tensor in batch.labels.items()}, len(chosen))
