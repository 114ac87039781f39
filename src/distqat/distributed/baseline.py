"""The documented baseline: one process trains the unsplit model on as many samples as the swarm would."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.diloco.inner_optimizer import build_inner_optimizer, learning_rate, set_learning_rate
from distqat.distributed.assembly.stage_factory import build_task, feeds_norms
from distqat.distributed.coordination.run_end import mean
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.training.baseline_batches import batch_feed, reports_to_client
from distqat.distributed.training.baseline_model import SwarmBaselineModel
from distqat.distributed.training.baseline_result import (
    BaselineFigures,
    conclude_baseline,
    trained_before,
    write_trained,
)
from distqat.distributed.training.batch_phases import BatchTally, PhaseStep, phase_steps
from distqat.distributed.training.batch_source import BatchFeed
from distqat.distributed.training.loss_jumps import LossWatch, tell
from distqat.distributed.training.nonfinite_steps import FiniteSteps, all_finite
from distqat.errors import QuantError, RunFailed
from distqat.metrics import Sink, open_sinks
from distqat.models.auxiliary_loss import AUXILIARY, take_auxiliary_loss
from distqat.process import RoleParameters, announce_ready, notice, resolve_device
from distqat.quant import (
    begin_measuring,
    drop_weights,
    hold_weights,
    look_again,
    quant_schedule,
    settle_weights,
    step_parameter_names,
    weight_step_names,
)
from distqat.tasks.base import Batch, Task

logger = logging.getLogger(__name__)

LOG_EVERY = 10


@dataclass
class BaselineProgress:
    """What the baseline has done so far."""

    step: int = 0
    loss: float = float("nan")
    samples: int = 0
    first_loss: float | None = None
    losses: dict[str, float] = field(default_factory=dict)  # of the phases of the last batch
    auxiliary: float = 0.0  # the stages' own part of the loss of the last batch


class BaselineTrainer:
    """A plain training loop over the composed stages: same cuts, seeds, microbatches and optimizer."""

    def __init__(self, config: Config, device: torch.device, samples: int | None = None) -> None:
        self.model = SwarmBaselineModel(config).to(device).train()
        self.progress = BaselineProgress()
        self.finite = FiniteSteps()
        self.account: dict[str, Any] = {}  # what the data set leaves out
        self._config = config
        self._device = device
        self._task: Task = build_task(config)
        self._precision = ForwardPrecision.resolve(config.data.precision, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._precision.scaled)
        names = dict(self.model.named_parameters())
        no_decay = {name for name, param in names.items() if param.ndim <= 1}
        self._optimizer = build_inner_optimizer(
            self.model,
            config.diloco.inner_optim,
            no_decay | step_parameter_names(self.model),
            weight_step_names(self.model),
        )
        per_step = config.diloco.batch_size_per_step * config.diloco.gradient_accumulation_steps
        self._applied = [0] * len(config.stages)  # steps of each stage
        self._auxiliary = 0.0  # of the batch so far
        self._stands = [feeds_norms(config, name, stage) for name, stage in self.model.stages.items()]
        self._trained, last = _steps(
            config, any(self._stands), None if samples is None else samples / per_step
        )
        self.total_steps = self._trained + last
        """With those at the end in which weights stand."""
        self._shown = 0  # microbatches that were for calibration
        self.moment = quant_schedule.ScheduleMoment()  # of the last step
        self._measured = set[int]()  # stages whose weights stand by now

    @torch.no_grad()
    def calibrate(self, batch: Sequence[Batch]) -> None:
        """Show quantizers real data; no step. Raises RunFailed when they cannot hold it."""
        self.model.follow_schedule(self._applied, self._trained)
        for part in batch:
            self._outputs(part)
        self._shown += len(batch)
        try:
            said = self.model.activate_if_calibrated(self._shown)
        except QuantError as error:
            raise RunFailed(str(error)) from error
        for sentence in said:
            notice(sentence)

    @property
    def calibrates(self) -> bool:
        """Whether the next batch is for quantizers alone."""
        return self.model.calibrating and min(self._applied) >= self._config.quant.warmup.float_steps

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model in eval mode, as servers answer `evaluate`."""
        self.model.eval()
        try:
            return self._outputs(Batch(dict(inputs), {}, 0))
        finally:
            self.model.train()

    def phases(self, batches: list[Batch]) -> tuple[PhaseStep, ...]:
        """The steps that the task takes for `batches`, as a trainer of the swarm would."""
        count = self._config.model_pipeline.microbatches
        return phase_steps(self._task, batches, stages=len(self._applied), microbatches=count)

    def train(self, steps: Sequence[PhaseStep]) -> float:
        """All steps of one batch; the sum of their losses."""
        tally = BatchTally()
        self._auxiliary = 0.0
        for step in steps:
            tally.add(step, self._step(step.parts, step.frozen), 0.0)
        done, total = self.progress, sum(tally.losses.values())
        self.progress = BaselineProgress(
            done.step + 1,
            total,
            done.samples + tally.samples,
            total if done.first_loss is None else done.first_loss,
            {name: loss for name, loss in tally.losses.items() if name},
            self._auxiliary,
        )
        return total

    def step(self, batch: list[Batch]) -> float:
        """One step on microbatches of a task without phases; the mean loss."""
        return self.train([PhaseStep("", batch)])

    def _step(self, batch: Sequence[Batch], frozen: frozenset[int]) -> float:
        """One optimizer step on the mean over all microbatches; the mean loss.

        One whose loss or gradients are not finite changes nothing. Raises RunFailed after many of them.
        """
        standing = self._standing()
        self.moment = self.model.follow_schedule(self._applied, self._trained, standing)
        stages = list(self.model.stages.values())
        buffers = [{name: buffer.clone() for name, buffer in stage.named_buffers()} for stage in stages]
        lr = self._rate(frozen)
        with self._held(frozen | standing):
            total, finite = self._backward(batch)
            good = self.finite.took(total, finite, self.progress.step + 1, lr)
            trains = len(frozen | standing) < len(self._applied)
            if trains and (good or self._scaler.is_enabled()):  # the scaler skips by itself, to learn of it
                set_learning_rate(self._optimizer, lr)
                self._scaler.step(self._optimizer)
                self._scaler.update()
        for position, stage in enumerate(stages):
            kept = good and position not in frozen
            self._applied[position] += kept
            if not kept:
                _put_back(stage, buffers[position])
            if self._applied[position] % self._config.diloco.inner_steps == 0:
                look_again(stage)
        return total

    def _standing(self) -> frozenset[int]:
        """Stages whose weights stand, for their statistics."""
        for position, stage in enumerate(self.model.stages.values()):
            standing = self.total_steps > self._trained and self._stands[position]
            due = standing and self._applied[position] >= self._trained
            if due and position not in self._measured:
                self._measured.add(position)
                begin_measuring(stage)
        return frozenset(self._measured)

    @contextlib.contextmanager
    def _held(self, held: frozenset[int]) -> Iterator[None]:
        """Parameters of these stages get no gradient meanwhile."""
        stages = [stage for i, stage in enumerate(self.model.stages.values()) if i in held]
        parameters = [p for stage in stages for p in stage.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _rate(self, frozen: frozenset[int]) -> float:
        """The learning rate of this step; stages that are trained together have taken as many."""
        options = self._config.diloco
        trained = [count for position, count in enumerate(self._applied) if position not in frozen]
        return learning_rate(max(trained, default=0), self._trained, options.inner_optim.lr, options)

    def _backward(self, batch: Sequence[Batch]) -> tuple[float, bool]:
        """Gradients of the mean over the microbatches, clipped; the mean loss, and whether all are finite."""
        samples = sum(part.size for part in batch)
        self._optimizer.zero_grad(set_to_none=True)
        hold_weights(self.model)
        total = 0.0
        for part in batch:
            labels = {name: tensor.to(self._device) for name, tensor in part.labels.items()}
            loss = self._task.loss(self._outputs(part), labels)
            own, share = take_auxiliary_loss(self.model), part.size / samples
            if own is not None:
                loss = loss + own
                self._auxiliary += float(own.detach()) * share
            loss = loss * share
            if loss.requires_grad:
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        settle_weights(self.model)
        drop_weights(self.model)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        finite = all_finite(gradients)
        if gradients and self._config.diloco.max_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.diloco.max_grad_norm)
        return total, finite

    def _outputs(self, part: Batch) -> dict[str, Tensor]:
        with self._precision.context():
            return self.model.outputs(*(tensor.to(self._device) for tensor in part.inputs.values()))


def _steps(config: Config, norms: bool, wanted: float | None) -> tuple[int, int]:
    """Steps that train, and those after them that measure `norms`, as many as in a swarm's last round.

    `wanted`: how many they should be together; None: as many train as in all replicas of the swarm.
    """
    diloco, warmup = config.diloco, config.quant.warmup
    measured = norms and quant_schedule.measures(diloco.outer_steps, warmup)
    last = min(diloco.inner_steps, warmup.calibrate_batches) if measured else 0
    if wanted is None:
        return diloco.total_steps * config.world_size, last
    total = max(1, round(wanted))
    last = min(last, total // quant_schedule.FEWEST_ROUNDS)
    return total - last, last


async def train_locally(config: Config, stop: asyncio.Event, parameters: RoleParameters) -> int:
    """Train, evaluate, write the summary.

    Computes in a thread, so that signals are heard. Without a client that serves data it serves its own.
    Raises RunFailed when there is no model, or it is saved but could not be judged.
    """
    device = torch.device(resolve_device(config.device, explicit=False))
    trainer = BaselineTrainer(config, device, parameters.samples)
    stages = dict(trainer.model.stages.items())
    trained = await asyncio.to_thread(trained_before, config, stages, parameters.generation)
    sink = open_sinks(config.log_dir, "trainer_0", config.wandb_project)
    try:
        if trained is None:
            figures = await _train(config, trainer, stop, sink, parameters)
            if stop.is_set():
                return 0
            trained = await write_trained(config, stages, figures, parameters.generation)
        await conclude_baseline(config, stages, trained)
        return 0
    finally:
        sink.close()


async def _train(
    config: Config, trainer: BaselineTrainer, stop: asyncio.Event, sink: Sink, parameters: RoleParameters
) -> BaselineFigures:
    """All steps, or until `stop`."""
    async with contextlib.AsyncExitStack() as open_things:
        data = await open_things.enter_async_context(batch_feed(config, trainer.answer, parameters))
        report = await open_things.enter_async_context(reports_to_client(config, parameters.client_peer))
        announce_ready({"role": "trainer", "pipeline": 0})
        began, losses, watch = time.monotonic(), list[float](), LossWatch()
        while trainer.progress.step < trainer.total_steps and not stop.is_set():
            loss = await _one_step(config, trainer, data)
            if loss is not None:
                losses.append(loss)
                record = _record(trainer.progress, time.monotonic() - began)
                sink.write({"event": "step", **record})
                tell(watch.add(loss, trainer.moment.phase, trainer.progress.step), sink, 0)
                await report({**record, "account": trainer.account})
        seconds = time.monotonic() - began
    if not stop.is_set():
        trainer.finite.ended(trainer.model.parameters())
    progress = trainer.progress
    return BaselineFigures(
        progress.first_loss, mean(losses[-20:]), progress.samples, seconds, trainer.account
    )


async def _one_step(config: Config, trainer: BaselineTrainer, data: BatchFeed) -> float | None:
    """The loss of one step; None for a batch that only calibrated."""
    options = config.diloco
    leased = [
        await data.next(options.batch_size_per_step) for _ in range(options.gradient_accumulation_steps)
    ]
    steps = trainer.phases([lease.batch for lease in leased])
    if trainer.calibrates:
        await asyncio.to_thread(trainer.calibrate, steps[0].parts)
        for lease in leased:
            await data.release(lease.batch_id)
        return None
    loss = await asyncio.to_thread(trainer.train, steps)
    for lease in leased:
        await data.consumed(lease.batch_id)
    trainer.account = data.account
    return loss


def _record(progress: BaselineProgress, seconds: float) -> dict[str, Any]:
    record = {
        "pipeline": 0,
        "step": progress.step,
        "loss": progress.loss,
        "samples": progress.samples // progress.step,  # of one step; all have as many
        "sps": progress.samples / max(seconds, 1e-9),
        **{f"loss_{name}": loss for name, loss in progress.losses.items()},
        **({AUXILIARY: progress.auxiliary} if progress.auxiliary else {}),
    }
    if progress.step == 1 or progress.step % LOG_EVERY == 0:
        logger.info("Trainer 0 Step #%d loss = %.5f sps = %.1f", progress.step, progress.loss, record["sps"])
    return record


@torch.no_grad()
def _put_back(stage: nn.Module, before: Mapping[str, Tensor]) -> None:
    for name, buffer in stage.named_buffers():
        buffer.copy_(before[name])
