"""`quant.teacher`: whether there can be one, and its weights from a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distqat.checkpoint.assembled_model import assemble, model_in, read_model, read_told
from distqat.config import Config, check_teacher_path, quantization, teacher_path
from distqat.config.pipeline_check import SHIPPED
from distqat.distributed.assembly.evaluation import fitting
from distqat.distributed.assembly.stage_factory import build_module, build_task
from distqat.errors import CheckpointError, ConfigError, ModelError
from distqat.models.teacher import teacher_of
from distqat.quant.quant_schedule import float_rounds

Named = dict[str, Tensor]


def check_teacher(config: Config) -> None:
    """Raises ConfigError for a teacher of whom nothing can be learned, or whose file does not fit.

    That there is a file is not looked at: a server that only joins stages needs none.
    """
    if config.quant.teacher is None or not config.quant.enabled:
        return
    _check_options(config)
    path = teacher_path(config)
    if path is None:
        _check_self(config)
        return
    if not path.exists():
        return
    with torch.device("meta"), torch.no_grad():
        modules = {stage: build_module(config, stage, quantize=False) for stage in config.stages}
    tensors = _read(config)
    for stage, module in modules.items():
        _fitting(config, stage, module.state_dict(), tensors)


def build_served(config: Config, stage: str) -> nn.Module:
    """A stage for a server, with the teacher that it has if it founds the stage. Raises ConfigError."""
    module = build_module(config, stage, taught=True)
    path = teacher_path(config)
    if path is not None and path.exists():
        load_teachers(config, {stage: module})
    return module


def load_teachers(config: Config, modules: Mapping[str, nn.Module]) -> None:
    """Let the teachers of stages be the float model of quant.teacher, if it names one. Raises ConfigError."""
    if teacher_path(config) is None:
        return
    check_teacher_path(config)
    tensors = _read(config)
    for stage, module in modules.items():
        teacher = teacher_of(module)
        if teacher is not None:
            teacher.learn(_fitting(config, stage, teacher.state, tensors))


def check_founder(config: Config, module: nn.Module) -> None:
    """Raises ConfigError for a stage to be founded whose teacher should come from a file that is not here."""
    teacher = teacher_of(module)
    if teacher is not None and not int(teacher.ready):
        check_teacher_path(config)


def _check_options(config: Config) -> None:
    options, task = config.quant.distillation, build_task(config)
    if options.hidden > 0 and len(config.stages) == 1:
        raise ConfigError(
            "quant.distillation.hidden is of what stages hand on to the next, and this model has one stage; "
            "set it to 0, or cut the model"
        )
    if not options.share and not options.hidden:
        raise ConfigError(
            "quant.distillation: share and hidden are both 0, so nothing is learned from quant.teacher; "
            "raise one of them, or leave quant.teacher out"
        )
    if options.share and (not task.distills or task.loss_at != "last_stage"):
        raise ConfigError(
            f"quant.teacher: data.task_type {task.name!r} has no logits over classes or tokens to learn "
            "from (cv and llm have); set quant.distillation.share: 0, and hidden above 0, or leave "
            "quant.teacher out"
        )


def _check_self(config: Config) -> None:
    """A model of ours that begins with random weights is no teacher; of a plugin's nothing is known."""
    entries = config.model_pipeline.pipeline
    ours = all(entry.model_name.rpartition(".")[0] in SHIPPED for entry in entries)
    in_float = float_rounds(config.diloco, config.quant.schedule) > 0
    trained = in_float or config.start_from or any(entry.kwargs.get("pretrained") for entry in entries)
    if ours and not trained:
        raise ConfigError(
            "quant.teacher: self is the model as it is when its quantizers begin, and here that is before "
            "the first step: untrained; train in float first (quant.warmup.float_share), begin with "
            "trained weights (start_from, pretrained), or name a checkpoint of a float run"
        )


def _read(config: Config) -> Named:
    """The float model. Raises ConfigError."""
    path = teacher_path(config)
    assert path is not None
    try:
        path = model_in(path)
        if path.is_file():
            tensors, told = read_model(path), read_told(path)
        else:
            model = assemble(path)  # however it was cut
            tensors, told = model.tensors, quantization(model.agreement)
    except CheckpointError as error:
        raise ConfigError(f"quant.teacher: {error}") from error
    if told.get("quant.enabled"):
        raise ConfigError(
            f"quant.teacher: {path} was trained quantized; a teacher is trained in float (--disable-quant)"
        )
    return tensors


def _fitting(config: Config, stage: str, wanted: Mapping[str, Tensor], tensors: Named) -> Named:
    try:
        return fitting(stage, wanted, tensors)
    except ModelError as error:
        raise ConfigError(
            f"quant.teacher: {config.quant.teacher!r} is another model than the one of the configuration: "
            f"{error}"
        ) from error
