"""`--ptq`: a float model quantized without training, judged beside the float model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.data.open_source import open_source
from distqat.data.reading_errors import batch_of, read_from
from distqat.distributed.assembly.evaluation import EvaluationResult, build_all, judge, load_all
from distqat.distributed.assembly.stage_factory import build_task
from distqat.errors import QuantError
from distqat.models import run_stages
from distqat.quant.ptq import end_observing, load_float, start_observing


def quantize_and_judge(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, EvaluationResult]:
    """What the model is worth in float and after quantization, by `float` and `ptq`.

    Calibrates on quant.warmup.calibrate_batches batches of the training part. `tensors` are those of an
    assembled model; what a quantized run has learned about steps is not looked at.
    Raises QuantError where quantization is disabled, ModelError, DataError, TaskError.
    """
    if not config.quant.enabled:
        raise QuantError("--ptq quantizes by the section 'quant', which is off; give --quant-enabled")
    off = config.quant.model_copy(update={"enabled": False})
    in_float = build_all(config.model_copy(update={"quant": off}))
    load_all(in_float, tensors)
    source = open_source(config.data, seed=config.seed)
    judged = {"float": judge(config, in_float, source)}
    quantized = build_all(config)
    for stage, module in quantized.items():
        load_float(module, in_float[stage].state_dict())
    calibrate(config, quantized, source)
    judged["ptq"] = judge(config, quantized, source)
    return judged


@torch.no_grad()
def calibrate(config: Config, modules: Mapping[str, nn.Module], source: Any) -> None:
    """Real batches through all stages, as evaluation runs them, until quantizers have seen enough."""
    task = build_task(config)
    for module in modules.values():
        start_observing(module)
    for _ in range(config.quant.warmup.calibrate_batches):
        items = read_from(source, config.diloco.batch_size_per_step)
        batch = batch_of(task, [item.sample for item in items])
        run_stages([modules[stage] for stage in config.stages], batch.inputs)
    for module in modules.values():
        end_observing(module)
