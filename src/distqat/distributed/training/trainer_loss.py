"""The loss of a task that computes it at the trainer: from what the last stage gives, with its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distqat.errors import DistqatError, RunFailed
from distqat.failures import describe
from distqat.tasks.base import Batch, Task


@dataclass(frozen=True)
class LossOfOutputs:
    """Of one microbatch: gradients of the outputs by name, and the scores that add up over microbatches."""

    gradients: dict[str, Tensor]
    scores: dict[str, float]


def loss_of_outputs(
    task: Task, outputs: Mapping[str, Tensor], part: Batch, *, share: float, scale: float
) -> LossOfOutputs:
    """What the last stage would make of its outputs, had it the labels.

    Args:
        share: of the batch's samples that are in this microbatch. scale: the loss scale.
    Raises RunFailed when the task's loss raises: it does so at every attempt.
    """
    leaves = {
        name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in outputs.items()
    }
    try:
        loss = task.loss(leaves, part.labels)
        if loss.requires_grad:
            torch.autograd.backward(loss * (share * scale))
        with torch.no_grad():
            scores = {"loss": float(loss) * share, **task.score(leaves, part.labels)}
    except DistqatError as error:
        raise RunFailed(str(error)) from error
    except Exception as error:
        raise RunFailed(f"the loss of task {task.name!r} fails at the trainer: {describe(error)}") from error
    gradients = {name: tensor.grad.contiguous() for name, tensor in leaves.items() if tensor.grad is not None}
    return LossOfOutputs(gradients, scores)
