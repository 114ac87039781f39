"""Tasks by name. A task turns samples into batches and outputs into a loss and a metric.

Importing this package does not import torch; building a task does.
"""

from __future__ import annotations

from collections.abc import Callable

from distqat.errors import TaskError, UnknownName
from distqat.tasks.base import Batch, Sample, Task
from distqat.tasks.names import TASK_ALIASES, TASK_TYPES

__all__ = ["TASKS", "TASK_ALIASES", "TASK_TYPES", "Batch", "Sample", "Task", "get_task"]


def _cv(num_classes: int | None, num_channels: int, img_size: int) -> Task:
    from distqat.tasks.cv import ImageClassification

    return ImageClassification(num_classes=num_classes, num_channels=num_channels, img_size=img_size)


TASKS: dict[str, Callable[[int | None, int, int], Task]] = {"cv": _cv}
"""Builders `(num_classes, num_channels, img_size) -> Task` of the tasks that exist."""


def get_task(
    task_type: str, *, num_classes: int | None = None, num_channels: int = 3, img_size: int = 32
) -> Task:
    """Build a task.

    Args:
        task_type: one of `TASK_TYPES`.
        num_classes: labels must lie in [0, num_classes); None checks only that they are not negative.
        num_channels: channels C of the batches [B, C, H, W].
        img_size: their height and width, in pixels.

    Raises:
        UnknownName: no task type of this name.
        TaskError: a documented task type that cannot be trained yet.
    """
    if task_type not in TASK_TYPES:
        raise UnknownName("task type", task_type, TASK_TYPES)
    build = TASKS.get(TASK_ALIASES.get(task_type, task_type))
    if build is None:
        raise TaskError(
            f"task type {task_type!r} cannot be trained in this version; "
            f"set data.task_type to one of: {', '.join(sorted(TASKS))}"
        )
    return build(num_classes, num_channels, img_size)
