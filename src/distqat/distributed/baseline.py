"""The documented baseline: one process trains the unsplit model on as many samples as the swarm would."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import torch

from distqat.config import Config
from distqat.distributed.assembly.training_loss import DISTILLATION
from distqat.distributed.coordination.run_end import mean
from distqat.distributed.training.baseline_batches import batch_feed, reports_to_client
from distqat.distributed.training.baseline_result import (
    BaselineFigures,
    conclude_baseline,
    trained_before,
    write_trained,
)
from distqat.distributed.training.baseline_trainer import BaselineProgress, BaselineTrainer
from distqat.distributed.training.batch_source import BatchFeed
from distqat.distributed.training.loss_jumps import LossWatch, tell
from distqat.metrics import Sink, open_sinks
from distqat.models.auxiliary_loss import AUXILIARY
from distqat.process import RoleParameters, announce_ready, resolve_device

logger = logging.getLogger(__name__)

LOG_EVERY = 10


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
                round_ends = trainer.progress.step % config.diloco.inner_steps == 0  # in a swarm
                if round_ends and (seen := await asyncio.to_thread(trainer.weights)):
                    sink.write({"event": "weights", "step": trainer.progress.step, "weights": seen})
        seconds = time.monotonic() - began
    if not stop.is_set():
        trainer.finite.ended(trainer.model.parameters())
        trainer.ended()
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
        **({DISTILLATION: progress.distillation} if progress.distillation else {}),
    }
    if progress.step == 1 or progress.step % LOG_EVERY == 0:
        logger.info("Trainer 0 Step #%d loss = %.5f sps = %.1f", progress.step, progress.loss, record["sps"])
    return record
