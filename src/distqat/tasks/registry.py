"""Tasks by name. Importing this does not import torch; building a task does."""

from __future__ import annotations

from collections.abc import Callable

from distqat.errors import DistqatError, TaskError, UnknownName
from distqat.failures import describe
from distqat.registration import enter
from distqat.tasks.base import Task, TaskSettings, adopted

TaskBuilder = Callable[[TaskSettings], Task]

TASK_TYPES: tuple[str, ...] = ("cv", "image_gen", "llm", "nlp", "node_pred", "rl", "speech")
"""Every documented `task_type`; a configuration with any of them loads."""

TASK_ALIASES: dict[str, str] = {"nlp": "llm"}
"""Two documented names of one task."""

TASKS: dict[str, TaskBuilder] = {}
"""Builders of the tasks that exist, those of plugins too."""


def register_task(name: str) -> Callable[[TaskBuilder], TaskBuilder]:
    """Make a task known as `data.task_type: name`; decorates what builds it from its settings.

    Raises TaskError when another builder has the name already.
    """

    def register(build: TaskBuilder) -> TaskBuilder:
        enter(TASKS, name, build, kind="task type", error=TaskError)
        return build

    return register


def known_task_types() -> tuple[str, ...]:
    """Documented names, and those that were registered."""
    return tuple(sorted({*TASK_TYPES, *TASKS}))


def get_task(task_type: str, settings: TaskSettings | None = None) -> Task:
    """Build a task; one of a plugin need not inherit from `Task` (see `adopted`).

    Raises:
        UnknownName: no task type of this name.
        TaskError: settings that the task cannot work with, or its file cannot be imported.
    """
    build = TASKS.get(TASK_ALIASES.get(task_type, task_type))
    if build is None:
        raise UnknownName("task type", task_type, known_task_types())
    try:
        return adopted(build(settings or TaskSettings()))
    except DistqatError:
        raise
    except Exception as error:  # a task is user code: whatever it raises is told with its place
        raise TaskError(f"the task {task_type!r} cannot be built: {describe(error)}") from error
