"""The loss of a microbatch at the last stage, with what its teacher says."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distqat.models.teacher import split
from distqat.quant.options import DistillationOptions
from distqat.tasks.base import Task

DISTILLATION = "distillation_loss"
"""The score that tells the mean KL divergence from the teacher; a step's `loss` contains it."""


def training_loss(
    task: Task, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], options: DistillationOptions
) -> tuple[Tensor, dict[str, float]]:
    """(mean loss, scores that are means), of what `run_stage` gave of the last stage.

    The task's alone where no teacher gave anything. T**2 keeps the gradient's size as T grows.
    """
    own, taught = split(outputs)
    loss = task.loss(own, labels)
    if not taught or not options.share:
        return loss, {}
    soft = task.soft_loss(own, taught, labels, options.temperature)
    loss = (1 - options.share) * loss + options.share * options.temperature**2 * soft
    return loss, {DISTILLATION: float(soft.detach())}
