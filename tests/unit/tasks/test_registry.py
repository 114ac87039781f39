"""Task types load in a configuration and can be built; a plugin's is known like ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from distqat.data.options import DataOptions
from distqat.errors import TaskError, UnknownName
from distqat.tasks import (
    TASK_ALIASES,
    TASK_TYPES,
    TASKS,
    Batch,
    Sample,
    Task,
    TaskSettings,
    get_task,
    register_task,
)
from distqat.tasks.base import Forward, adopted


@pytest.mark.parametrize("task_type", [name for name in TASK_TYPES if TASK_ALIASES.get(name, name) in TASKS])
def test_tasks_are_built(task_type: str) -> None:
    options = DataOptions.model_validate({"task_type": task_type})
    task = get_task(options.task_type, TaskSettings(num_classes=10))
    assert task.name == TASK_ALIASES.get(task_type, task_type)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'nlp'"):
        get_task("nlpp")
    with pytest.raises(ValueError, match="did you mean 'nlp'"):
        DataOptions.model_validate({"task_type": "nlpp"})


def test_a_registered_task_is_known_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqat.tasks.registry.TASKS", dict(TASKS))

    def build(settings: TaskSettings) -> Task:
        return get_task("cv", settings)

    register_task("pairs")(build)
    register_task("pairs")(build)  # a file that two paths import
    assert get_task(DataOptions.model_validate({"task_type": "pairs"}).task_type).name == "cv"
    with pytest.raises(TaskError, match="another name"):
        register_task("cv")(build)


def test_names_and_options_import_without_torch() -> None:
    code = "import sys; import distqat.tasks, distqat.data.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 0


def test_a_task_that_inherits_from_nothing_has_the_defaults_and_its_own_methods() -> None:
    class Plain:
        name, metric, largest = "plain", "loss", 3

        @property
        def teacher(self) -> int:
            raise FileNotFoundError("loaded when it is asked, and not before")

        def collate(self, samples: Sequence[Sample]) -> Batch:
            return Batch({}, {}, len(samples))

        def judge(self, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
            return 1.0, float("nan"), 0

    task: Any = adopted(Plain())
    batch = task.collate_at([{}, {}], [(0, 0), (0, 1)])
    assert batch.size == 2
    assert (task.name, task.largest, task.loss_at, task.heldout_batch) == ("plain", 3, "last_stage", None)
    assert [phase.name for phase, _ in task.phases(batch)] == [""]
    assert (task.judges, task.phased, task.plays) == (True, False, False)
    assert task.judge([], dict)[0] == 1.0
    assert adopted(task) is task
    with pytest.raises(FileNotFoundError):
        task.teacher  # noqa: B018
