"""The documented baseline: one process trains the unsplit model on as many samples as the swarm would."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distqat.config import Config
from distqat.data.client import DataClient
from distqat.diloco.inner import build_inner_optimizer, learning_rate, set_learning_rate
from distqat.distributed.building import build_task
from distqat.distributed.coordination.finish import Summary, judge, mean, save_model
from distqat.distributed.data_server import socket_path
from distqat.distributed.model import SwarmBaselineModel
from distqat.distributed.process import announce_ready, resolve_device
from distqat.distributed.serving.precision import Precision
from distqat.metrics import open_sinks
from distqat.quant import step_parameter_names
from distqat.tasks.base import Batch, Task

logger = logging.getLogger(__name__)

LOG_EVERY = 10


@dataclass
class Progress:
    """What the baseline has done so far."""

    step: int = 0
    loss: float = float("nan")
    samples: int = 0
    first_loss: float | None = None


class BaselineTrainer:
    """A plain training loop over the composed stages: same cuts, seeds, microbatches and optimizer."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.model = SwarmBaselineModel(config).to(device).train()
        self.progress = Progress()
        self._config = config
        self._device = device
        self._task: Task = build_task(config)
        self._precision = Precision.resolve(config.data.precision, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._precision.scaled)
        names = dict(self.model.named_parameters())
        no_decay = {name for name, param in names.items() if param.ndim <= 1}
        self._optimizer = build_inner_optimizer(
            self.model, config.diloco.inner_optim, no_decay | step_parameter_names(self.model)
        )
        self.total_steps = config.diloco.total_steps * config.world_size

    @torch.no_grad()
    def calibrate(self, batch: list[Batch]) -> None:
        """Show quantizers real data; no step."""
        for part in batch:
            self._outputs(part)
        self.model.activate_if_calibrated()

    def step(self, batch: list[Batch]) -> float:
        """One optimizer step on the mean over all microbatches; the mean loss."""
        samples = sum(part.size for part in batch)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in batch:
            labels = {name: tensor.to(self._device) for name, tensor in part.labels.items()}
            loss = self._task.loss(self._outputs(part), labels) * (part.size / samples)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        self._apply()
        done = self.progress
        self.progress = Progress(
            done.step + 1,
            total,
            done.samples + samples,
            total if done.first_loss is None else done.first_loss,
        )
        return total

    def _apply(self) -> None:
        options = self._config.diloco
        if options.max_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.max_grad_norm)
        lr = learning_rate(self.progress.step, self.total_steps, options.inner_optim.lr, options)
        set_learning_rate(self._optimizer, lr)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _outputs(self, part: Batch) -> dict[str, Tensor]:
        with self._precision.context(self._device):
            return self.model.outputs(*(tensor.to(self._device) for tensor in part.inputs.values()))


async def train_locally(
    config: Config, stop: asyncio.Event, report: Callable[[dict[str, Any]], Any] = lambda record: None
) -> int:
    """Train, evaluate, write the summary. The loop computes in a thread, so signals are heard."""
    device = torch.device(resolve_device(config.device, explicit=False))
    trainer = BaselineTrainer(config, device)
    sink = open_sinks(config.log_dir, "trainer_0", config.wandb_project)
    data = await DataClient.connect(socket_path(), trainer="0", count=config.diloco.batch_size_per_step)
    announce_ready({"role": "trainer", "pipeline": 0})
    began, losses = time.monotonic(), list[float]()
    while trainer.progress.step < trainer.total_steps and not stop.is_set():
        leased = [
            await data.next(config.diloco.batch_size_per_step)
            for _ in range(config.diloco.gradient_accumulation_steps)
        ]
        parts = [p for lease in leased for p in lease.batch.microbatches(config.model_pipeline.microbatches)]
        if trainer.model.calibrating:
            await asyncio.to_thread(trainer.calibrate, parts)
            for lease in leased:
                await data.release(lease.batch_id)
            continue
        losses.append(await asyncio.to_thread(trainer.step, parts))
        for lease in leased:
            await data.consumed(lease.batch_id)
        record = _record(trainer.progress, time.monotonic() - began)
        sink.write({"event": "step", **record})
        await report(record) if asyncio.iscoroutinefunction(report) else report(record)
    seconds = time.monotonic() - began
    await data.close()
    if not stop.is_set():
        summary = await asyncio.to_thread(_finish, config, trainer, losses, seconds)
        logger.info("finished: %s", summary.line())
    sink.close()
    return 0


def _record(progress: Progress, seconds: float) -> dict[str, Any]:
    record = {
        "pipeline": 0,
        "step": progress.step,
        "loss": progress.loss,
        "samples": progress.samples,
        "sps": progress.samples / max(seconds, 1e-9),
    }
    if progress.step == 1 or progress.step % LOG_EVERY == 0:
        logger.info("Trainer 0 Step #%d loss = %.5f sps = %.1f", progress.step, progress.loss, record["sps"])
    return record


def _finish(config: Config, trainer: BaselineTrainer, losses: list[float], seconds: float) -> Summary:
    modules = dict(trainer.model.stages.items())
    metric, loss, count = judge(config, modules)
    progress = trainer.progress
    summary = Summary(
        mode="baseline",
        metric=build_task(config).metric,
        accuracy=metric,
        heldout_samples=count,
        heldout_loss=loss,
        loss_first=progress.first_loss,
        loss_last=mean(losses[-20:]),
        samples=progress.samples,
        samples_per_s=progress.samples / max(seconds, 1e-9),
        seconds=seconds,
        rounds=0,
        model=str(save_model(config, modules)),
        logs=str(config.log_dir),
        checkpoints=str(config.checkpoint_dir),
    )
    summary.write(Path(config.log_dir))
    return summary
