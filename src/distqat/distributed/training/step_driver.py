"""Inner steps as their trainer drives them: open, microbatches, prepare, then commit or abort."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from distqat.config import Config
from distqat.config.schema import PipelineOptions
from distqat.distributed.training.gradient_clipping import norm_and_factor
from distqat.distributed.training.loss_scaler import LossScaler
from distqat.distributed.training.route_step import RouteStep, StepSettings, about, all_or_none
from distqat.distributed.training.trainer_loss import loss_of_outputs
from distqat.errors import SwarmError
from distqat.models.auxiliary_loss import AUXILIARY
from distqat.protocol.calls.step_calls import CommitTerms, EvaluateBatch, StageStanding
from distqat.protocol.hop import Hop
from distqat.protocol.step_attempts import StepId
from distqat.swarm.call_messages import exchange
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import Transport
from distqat.tasks.base import Batch, Task
from distqat.topology.expert import ExpertId

LOCK_PATIENCE = 2.0  # in units of averaging_timeout: an outer round may stand before a step
NO_SETTINGS = StepSettings()


@dataclass(frozen=True)
class StepResult:
    """What a committed step tells: mean loss, summed scores, samples.

    `lost` names the replicas that did not apply it, `faults` says why, of those that answered; `not_finite`
    names the stages of which a gradient was not finite, which is why it was skipped.
    """

    loss: float
    scores: dict[str, float]
    samples: int
    skipped: bool = False
    lost: tuple[str, ...] = ()
    faults: tuple[SwarmError, ...] = ()
    not_finite: tuple[str, ...] = ()
    norm: float = 0.0
    standing: tuple[StageStanding, ...] = ()  # what each stage that committed said of itself


@dataclass
class StepDriver:
    """Runs steps of one trainer over whatever route it is given."""

    transport: Transport
    trainer: str
    incarnation: int
    options: PipelineOptions
    window_timeout: float  # how long a step lock may be waited for: other trainers' steps and outer rounds
    max_grad_norm: float | None = None
    scaler: LossScaler = field(default_factory=LossScaler)
    task: Task | None = None  # where the trainer computes the loss, not the last stage

    @classmethod
    def of(cls, config: Config, transport: Transport, incarnation: int) -> StepDriver:
        """With the time limits and the clipping of a configuration.

        `incarnation` tells lives of one peer apart: a later one has a larger number.
        """
        pipeline, diloco = config.model_pipeline, config.diloco
        patience = LOCK_PATIENCE * diloco.averaging_timeout
        return cls(
            transport=transport,
            trainer=transport.peer,
            incarnation=incarnation,
            options=pipeline,
            window_timeout=patience + pipeline.forward_timeout + pipeline.backward_timeout,
            max_grad_norm=diloco.max_grad_norm,
        )

    def id(self, step: int, attempt: int) -> StepId:
        """The name of an attempt of this life of the trainer."""
        return StepId(self.trainer, self.incarnation, step, attempt)

    async def run(
        self,
        batch: Sequence[Batch],
        hops: Sequence[Hop],
        step: int,
        attempt: int,
        *,
        consumed: Callable[[], Awaitable[None]],
        settings: StepSettings = NO_SETTINGS,
    ) -> StepResult:
        """Train one step on `batch`, cut into its microbatches.

        `consumed` is awaited just before the first commit: from then on the samples are spent. Raises a
        SwarmError whose `at` names the replica it is about; the attempt is then aborted on every stage.
        """
        running = self.begin(hops, self.id(step, attempt))
        async with aborted_on_failure(running):
            await self.open(running, settings, len(batch))
            scores = await self._microbatches(running, batch)
            norms = await running.prepare(len(batch))
        await consumed()
        return await self.commit(running, norms, scores, sum(part.size for part in batch), settings.mark)

    def begin(self, hops: Sequence[Hop], id: StepId, *, train: bool = True) -> RouteStep:
        """An attempt at a step that is not open yet."""
        budget = (self.options.forward_timeout + self.options.backward_timeout) * len(hops)
        return RouteStep(self.transport, hops, id, budget=budget, train=train)

    async def open(self, step: RouteStep, settings: StepSettings, microbatches: int) -> None:
        """Open it at every stage. `microbatches` 0: as many as come before it is prepared."""
        await step.open(settings, microbatches=microbatches, timeout=self.window_timeout)

    async def commit(
        self, step: RouteStep, norms: Sequence[Tensor], scores: dict[str, float], samples: int, mark: str = ""
    ) -> StepResult:
        """Clip the gradient and commit the prepared step, or have it skipped where it is not finite.

        Args:
            norms: what `step.prepare` gave. scores: those of the step, `loss` among them.
        Raises StaleAttempt when a stage has aborted the attempt meanwhile: then no stage commits it.
        """
        norm, factor = norm_and_factor(norms, self.max_grad_norm, self.scaler.scale)
        skip = not math.isfinite(norm)
        ends = await step.commit(CommitTerms(samples, skip, 0.0 if skip else factor, mark))
        self.scaler.update(overflow=skip)
        loss = scores.pop("loss", math.nan)
        bad = [not bool(each.isfinite().all()) for each in norms]
        return StepResult(
            loss,
            scores,
            samples,
            skip,
            ends.lost,
            ends.faults,
            tuple(ExpertId.parse(hop.uid).stage for hop, each in zip(step.hops, bad, strict=True) if each),
            norm,
            ends.standing,
        )

    async def calibrate(self, batch: Sequence[Batch], hops: Sequence[Hop], step: int, attempt: int) -> None:
        """Show one batch to quantizers that still calibrate. No step is taken, no sample is spent."""
        running = self.begin(hops, self.id(step, attempt), train=False)
        async with aborted_on_failure(running):
            await self.open(running, NO_SETTINGS, len(batch))
            await self._microbatches(running, batch)
            await running.prepare(len(batch))
        await running.commit(CommitTerms(0, skip=False, factor=1.0))

    async def evaluate(self, inputs: Mapping[str, Tensor], hops: Sequence[Hop]) -> Mapping[str, Tensor]:
        """The last stage's outputs in eval mode, outside any step. Raises as `run` does."""
        budget = self.options.forward_timeout * len(hops)
        link = await about(hops[0], self.transport.link(hops[0].address))
        request = EvaluateBatch(tuple(hops[1:]), budget)
        call = exchange(link, request, Message(tensors=inputs), timeout=budget, prompt=True)
        return (await about(hops[0], call))[1].tensors

    async def _microbatches(self, step: RouteStep, parts: Sequence[Batch]) -> dict[str, float]:
        """All microbatches at once; stages take them in order. Summed scores."""
        samples, scale = sum(part.size for part in parts), self.scaler.scale
        turns = asyncio.Semaphore(len(step.hops) + 1)  # graphs that the first stage holds

        async def one(number: int, part: Batch) -> dict[str, float]:
            share = part.size / samples
            if self.task is None or not step.trains:
                return await step.train(number, part, share=share, scale=scale)
            async with turns:
                return await _train_from_here(step, self.task, number, part, share=share, scale=scale)

        totals: dict[str, float] = {}
        for scores in await all_or_none([one(number, part) for number, part in enumerate(parts)]):
            for name, value in scores.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals


async def _train_from_here(
    step: RouteStep, task: Task, number: int, part: Batch, *, share: float, scale: float
) -> dict[str, float]:
    """A microbatch whose loss is computed here; its scores. Labels stay here."""
    outputs, own = await step.forward(number, part.inputs)
    found = await asyncio.to_thread(loss_of_outputs, task, outputs, part, share=share, scale=scale)
    await step.backward(number, found.gradients, share * scale)
    if own == 0.0:
        return found.scores
    return {**found.scores, "loss": found.scores["loss"] + own * share, AUXILIARY: own * share}


@contextlib.asynccontextmanager
async def aborted_on_failure(step: RouteStep) -> AsyncIterator[None]:
    """Around the work on a step until it is prepared: whatever ends it early undoes it everywhere."""
    try:
        yield
    except BaseException:
        await step.abort()
        raise
