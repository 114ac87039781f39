"""Tasks by name. A task turns samples into batches and outputs into a loss and a metric.

Importing this package does not import torch; building a task does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distqat.errors import TaskError, UnknownName
from distqat.tasks.base import Batch, Sample, Task
from distqat.tasks.names import TASK_ALIASES, TASK_TYPES

__all__ = ["TASKS", "TASK_ALIASES", "TASK_TYPES", "Batch", "Sample", "Task", "get_task"]


@dataclass(frozen=True)
class Sizes:
    """What the configuration says of the shapes of batches."""

    num_classes: int | None = None
    num_channels: int = 3
    img_size: int = 32
    vocab_size: int | None = None
    sequence_length: int = 128


def _cv(sizes: Sizes) -> Task:
    from distqat.tasks.cv import ImageClassification

    return ImageClassification(
        num_classes=sizes.num_classes, num_channels=sizes.num_channels, img_size=sizes.img_size
    )


def _llm(sizes: Sizes) -> Task:
    from distqat.tasks.llm import LanguageModelling

    return LanguageModelling(vocab_size=sizes.vocab_size, sequence_length=sizes.sequence_length)


TASKS: dict[str, Callable[[Sizes], Task]] = {"cv": _cv, "llm": _llm}
"""Builders of the tasks that exist."""


def get_task(
    task_type: str,
    *,
    num_classes: int | None = None,
    num_channels: int = 3,
    img_size: int = 32,
    vocab_size: int | None = None,
    sequence_length: int = 128,
) -> Task:
    """Build a task.

    Args:
        task_type: one of `TASK_TYPES`.
        num_classes: labels must lie in [0, num_classes); None checks only that they are not negative.
        num_channels: channels C of the batches [B, C, H, W].
        img_size: their height and width, in pixels.
        vocab_size: token ids must lie in [0, vocab_size); None checks only that they are not negative.
        sequence_length: tokens T of the batches [B, T].

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
    return build(Sizes(num_classes, num_channels, img_size, vocab_size, sequence_length))
