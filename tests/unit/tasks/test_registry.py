"""Task types load in a configuration and can be built; a plugin's is known like ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distqat.data.options import DataOptions
from distqat.errors import TaskError, UnknownName
from distqat.tasks import TASK_ALIASES, TASK_TYPES, TASKS, Task, TaskSettings, get_task, register_task


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
