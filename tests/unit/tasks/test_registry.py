"""Task types load in a configuration; those that exist can be built."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from distqat.data.options import DataOptions, TaskType
from distqat.errors import TaskError, UnknownName
from distqat.tasks import TASK_ALIASES, TASK_TYPES, TASKS, get_task


def test_config_and_registry_name_the_same_types() -> None:
    assert sorted(get_args(TaskType)) == sorted(TASK_TYPES)
    assert set(TASK_ALIASES) | set(TASKS) <= set(TASK_TYPES)


BUILT = [name for name in TASK_TYPES if TASK_ALIASES.get(name, name) in TASKS]


@pytest.mark.parametrize("task_type", BUILT)
def test_tasks_are_built(task_type: str) -> None:
    options = DataOptions.model_validate({"task_type": task_type})
    assert get_task(options.task_type, num_classes=10).name == TASK_ALIASES.get(task_type, task_type)


@pytest.mark.parametrize("task_type", sorted(set(TASK_TYPES) - set(BUILT)))
def test_documented_types_load_and_explain_themselves_when_built(task_type: str) -> None:
    options = DataOptions.model_validate({"task_type": task_type})
    with pytest.raises(TaskError, match=f"{task_type!r} cannot be trained.*: cv"):
        get_task(options.task_type)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'nlp'"):
        get_task("nlpp")


def test_names_and_options_import_without_torch() -> None:
    code = (
        "import sys; import distqat.tasks.names, distqat.tasks, distqat.data.options; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 0
