"""The baseline's steps: a plain training loop over the composed stages, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.diloco.inner_optimizer import build_inner_optimizer, learning_rate, set_learning_rate
from distqat.distributed.assembly.stage_factory import build_task, feeds_norms
from distqat.distributed.assembly.starting_weights import load_start
from distqat.distributed.assembly.training_loss import DISTILLATION, training_loss
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.training.baseline_model import StepPlan, SwarmBaselineModel
from distqat.distributed.training.batch_phases import BatchTally, PhaseStep, phase_steps
from distqat.distributed.training.nonfinite_steps import FiniteSteps, all_finite
from distqat.distributed.training.weight_watch import WeightWatch
from distqat.errors import QuantError, RunFailed
from distqat.models.auxiliary_loss import take_auxiliary_loss
from distqat.models.teacher import is_teachers
from distqat.process import notice
from distqat.quant import (
    begin_measuring,
    drop_weights,
    hold_weights,
    look_again,
    moving_buffers,
    quant_schedule,
    settle_weights,
    step_parameter_names,
    weight_step_names,
)
from distqat.quant.quantized_layers import QuantizedLayer
from distqat.tasks.base import Batch, Task


@dataclass
class BaselineProgress:
    """What the baseline has done so far."""

    step: int = 0
    loss: float = float("nan")
    samples: int = 0
    first_loss: float | None = None
    losses: dict[str, float] = field(default_factory=dict)  # of the phases of the last batch
    auxiliary: float = 0.0  # the stages' own part of the loss of the last batch
    distillation: float = 0.0  # how far it was from its teacher


class BaselineTrainer:
    """A plain training loop over the composed stages: same cuts, seeds, microbatches and optimizer."""

    def __init__(self, config: Config, device: torch.device, samples: int | None = None) -> None:
        self.model = SwarmBaselineModel(config)
        load_start(config, dict(self.model.stages.items()))
        self.model.to(device).train()
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
        self._distillation = 0.0
        self._stands = [feeds_norms(config, name, stage) for name, stage in self.model.stages.items()]
        wanted = None if samples is None else samples / per_step
        self._plan = StepPlan.of(config, any(self._stands), wanted)
        self.total_steps = self._plan.trained + self._plan.measured
        """With those at the end in which weights stand."""
        self._shown = 0  # microbatches that were for calibration
        self.moment = quant_schedule.ScheduleMoment()  # of the last step
        self._measured = set[int]()  # stages whose weights stand by now
        self._watches = {name: WeightWatch(name) for name in self.model.stages}

    @torch.no_grad()
    def calibrate(self, batch: Sequence[Batch]) -> None:
        """Show quantizers real data; no step. Raises RunFailed when they cannot hold it."""
        self.model.follow_schedule(self._applied, self._plan)
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
        return self._plan.in_float == 0 and self.model.calibrating

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model in eval mode, as servers answer `evaluate`."""
        self.model.eval()
        try:
            return self._outputs(Batch(dict(inputs), {}, 0))
        finally:
            self.model.train()

    @torch.no_grad()
    def ended(self) -> None:
        """After the last step: steps of weights are where the next pass would have them, for the file."""
        for layer in self.model.modules():
            if isinstance(layer, QuantizedLayer):
                layer.weight_quant(layer.weight)

    def weights(self) -> dict[str, dict[str, Any]]:
        """How well codes hold the weights of each stage now, for the metrics; none while all are in float."""
        seen = {name: watch.look(self.model.stages[name]) for name, watch in self._watches.items()}
        return {name: figures for name, figures in seen.items() if figures}

    def phases(self, batches: list[Batch]) -> tuple[PhaseStep, ...]:
        """The steps that the task takes for `batches`, as a trainer of the swarm would."""
        count = self._config.model_pipeline.microbatches
        return phase_steps(self._task, batches, stages=len(self._applied), microbatches=count)

    def train(self, steps: Sequence[PhaseStep]) -> float:
        """All steps of one batch; the sum of their losses."""
        tally = BatchTally()
        self._auxiliary = self._distillation = 0.0
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
            self._distillation,
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
        self.moment = self.model.follow_schedule(self._applied, self._plan, standing)
        stages = list(self.model.stages.values())
        buffers = [
            {n: buffer.clone() for n, buffer in moving_buffers(stage).items() if not is_teachers(n)}
            for stage in stages
        ]
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
            elif self._applied[position] == self._plan.in_float:
                self._begin_quantized(position)
            if self._applied[position] % self._config.diloco.inner_steps == 0:
                look_again(stage)
        return total

    def _begin_quantized(self, position: int) -> None:
        try:
            said = self.model.begin_quantized(position)
        except QuantError as error:
            raise RunFailed(str(error)) from error
        for sentence in said:
            notice(sentence)

    def _standing(self) -> frozenset[int]:
        """Stages whose weights stand, for their statistics."""
        for position, stage in enumerate(self.model.stages.values()):
            standing = self._plan.measured > 0 and self._stands[position]
            due = standing and self._applied[position] >= self._plan.trained
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
        options, plan = self._config.diloco, self._plan
        trained = [count for position, count in enumerate(self._applied) if position not in frozen]
        step, lr = max(trained, default=0), options.inner_optim.lr
        return learning_rate(step, plan.trained, lr, options, in_float=plan.in_float)

    def _backward(self, batch: Sequence[Batch]) -> tuple[float, bool]:
        """Gradients of the mean over the microbatches, clipped; the mean loss, and whether all are finite."""
        samples = sum(part.size for part in batch)
        self._optimizer.zero_grad(set_to_none=True)
        hold_weights(self.model)
        total = 0.0
        for part in batch:
            labels = {name: tensor.to(self._device) for name, tensor in part.labels.items()}
            loss, scores = training_loss(
                self._task, self._outputs(part), labels, self._config.quant.distillation
            )
            own, share = take_auxiliary_loss(self.model), part.size / samples
            self._distillation += scores.get(DISTILLATION, 0.0) * share
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


@torch.no_grad()
def _put_back(stage: nn.Module, before: Mapping[str, Tensor]) -> None:
    now = dict(stage.named_buffers())
    for name, buffer in before.items():
        now[name].copy_(buffer)
