"""What is looked at before a run begins: the model, and the first batch of the data against it.

Nothing here takes memory or time for numbers: stages are run on the meta device, which knows shapes only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module, build_task, check_model
from distqat.distributed.assembly.starting_weights import check_start
from distqat.distributed.assembly.teacher_model import check_teacher
from distqat.errors import ConfigError, DataError, DistqatError, ModelError, QuantError, TaskError
from distqat.models import outputs_of_each
from distqat.tasks.base import Batch, Task

Told = dict[str, dict[str, tuple[str, list[int]]]]
"""Names, types and shapes of a batch's inputs and labels, as they pass between processes."""

_USER_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)


def check_run(config: Config) -> None:
    """Raises ConfigError when a stage or the task cannot be built, or the stages do not fit together.

    Or when the weights to start from are another model's.
    """
    try:
        check_model(config)
        build_task(config)
        check_teacher(config)
    except (ModelError, QuantError, TaskError, DataError) as error:
        raise ConfigError(str(error)) from error
    check_start(config)


def check_batch(config: Config, told: Told) -> None:
    """Raises ConfigError when the first stage cannot take this batch, or the loss not what the last gives.

    What the meta device cannot tell (an operation that needs values) is left to the first step.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            outputs = _through(config, _tensors(told["inputs"]), told)
            task = build_task(config)
            if outputs is not None and task.loss_at == "last_stage":
                _loss(task, outputs, _tensors(told["labels"]))
    except (ModelError, QuantError, TaskError, DataError) as error:
        raise ConfigError(str(error)) from error


def tell(task: Task, batch: Batch) -> Told:
    """What the first step of a batch shows to the first and the last stage."""
    batch = task.phases(batch)[0][1]
    return {"inputs": _shapes(batch.inputs), "labels": _shapes(batch.labels)}


def _through(config: Config, named: Mapping[str, Tensor], told: Told) -> dict[str, Tensor] | None:
    stages = [build_module(config, stage, quantize=False).eval() for stage in config.stages]
    passed = [dict(named)]
    try:
        for outputs in outputs_of_each(stages, named):
            passed.append(outputs)
    except NotImplementedError:
        return None
    except _USER_ERRORS as error:
        if "meta" in str(error):
            return None
        text = " ".join(str(error).split())[:300]
        position = len(passed) - 1
        if position:
            raise ModelError(
                f"stage {config.stages[position]!r} cannot take what the stages before it make of a batch: "
                f"{text}"
            ) from error
        raise ModelError(
            f"the first stage, {config.model_pipeline.pipeline[0].model_name!r}, cannot take a batch of "
            f"data.task_type {config.data.task_type!r}, {json.dumps(told['inputs'])}: {text}; choose the "
            "task that the model is for, or begin the pipeline with the model's first stage"
        ) from error
    return passed[-1]


def _loss(task: Task, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
    classes, logits = getattr(task, "num_classes", None), next(iter(outputs.values()))
    if task.metric == "accuracy" and classes is not None and logits.shape[-1] != classes:
        raise ModelError(
            f"the last stage gives {logits.shape[-1]} numbers per sample, but num_classes is {classes}: "
            "set it to the same in all entries of model_pipeline.pipeline, and end the pipeline with the "
            "model's last stage"
        )
    try:
        task.loss(outputs, labels)
    except DistqatError:
        raise
    except (
        NotImplementedError,
        *_USER_ERRORS,
    ):  # a loss may need values; what it checks it says as a TaskError
        return


def _shapes(named: Mapping[str, Tensor]) -> dict[str, tuple[str, list[int]]]:
    return {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in named.items()}


def _tensors(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in shapes.items()}
