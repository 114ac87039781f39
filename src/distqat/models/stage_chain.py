"""The stages of a model one behind the other, in one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from distqat.models.registry import named_tensors
from distqat.models.teacher import split, teacher_of


def run_stage(stage: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a stage returns, by name, and in a pass that trains what its teacher does (`teacher.x`).

    It takes its inputs by position. Raises whatever the stage raises.
    """
    outputs = named_tensors(stage(*split(inputs)[0].values()))
    teacher = teacher_of(stage)
    if teacher is None or not stage.training or not torch.is_grad_enabled():
        return outputs
    return {**outputs, **teacher.beside(inputs, outputs, stage)}


def outputs_of_each(stages: Iterable[nn.Module], inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """What each stage returns, by name. A stage takes by position what the one before it returned.

    Lazy: a stage runs when its outputs are asked for. Raises whatever the stage raises.
    """
    named = dict(inputs)
    for stage in stages:
        named = run_stage(stage, named)
        yield named


def run_stages(stages: Iterable[nn.Module], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last stage's outputs by name; the inputs themselves where there are no stages."""
    named = dict(inputs)
    for outputs in outputs_of_each(stages, inputs):
        named = outputs
    return named
