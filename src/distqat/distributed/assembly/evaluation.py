"""The metric of a task on the held-out part of its data, for stages that are in this process."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.data.reading_errors import batch_of, heldout_of
from distqat.data.source import Source
from distqat.distributed.assembly.held_out_batches import heldout_batches
from distqat.distributed.assembly.stage_factory import build_module, build_task, open_data
from distqat.errors import DistqatError, ModelError, TaskError
from distqat.failpoints import failpoint
from distqat.failures import describe
from distqat.models import run_stages
from distqat.quant.output_quantizer import link
from distqat.tasks.base import Forward, Sample, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What a model is worth on held-out data."""

    metric: str
    value: float
    loss: float
    count: int

    def line(self) -> str:
        """One sentence."""
        return f"{self.metric} {self.value:.4f} on {self.count} held-out samples"


@dataclass(frozen=True)
class NotJudged:
    """Why a model could not be judged."""

    why: str


def build_all(config: Config) -> dict[str, nn.Module]:
    """Every stage of the model, in this process."""
    return {stage: build_module(config, stage) for stage in config.stages}


def load_all(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Write an assembled model into its stages. Raises ModelError naming what is missing or does not fit."""
    for stage, module in modules.items():
        try:
            module.load_state_dict(fitting(stage, module.state_dict(), tensors))
        except ModelError as error:
            raise ModelError(
                f"{error}; give the run's own configuration with --config-path, or none if the checkpoint "
                "holds it"
            ) from error


def fitting(stage: str, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an assembled model the tensors of a stage that has the names and shapes of `wanted`. ModelError."""
    prefix = f"{stage}." if any(f"{stage}.{name}" in tensors for name in wanted) else ""
    for name, own in wanted.items():
        found = tensors.get(prefix + name)
        if found is None or found.shape != own.shape or found.is_floating_point() != own.is_floating_point():
            other = "" if found is None or found.shape != own.shape else f" of {found.dtype}"
            shape = "is missing" if found is None else f"has shape {list(found.shape)}{other}"
            raise ModelError(
                f"{name!r} of stage {stage!r} {shape}, the configuration wants {list(own.shape)}"
            )
    return {name: tensors[prefix + name] for name in wanted}


def judge(config: Config, modules: Mapping[str, nn.Module], source: Source | None = None) -> EvaluationResult:
    """The composed stages in eval mode on the held-out part of the configured data.

    Opens the data set unless it is given; that may wait for the hub. Raises DataError, TaskError: whatever
    stands in the way, also in a library or a plugin.
    """
    what = f"the held-out part of {config.data.dataset_name!r} cannot be judged"
    with _as_task_error(what):
        failpoint("evaluation.judge")
        task = build_task(config)
        source = source or open_data(config)
        return EvaluationResult(task.metric, *evaluate(task, heldout_of(source), composed(config, modules)))


def judge_or_say(config: Config, modules: Mapping[str, nn.Module]) -> EvaluationResult | NotJudged:
    """As `judge`, for the end of a run, which must not fail by it."""
    try:
        judged = judge(config, modules)
    except DistqatError as error:
        logger.warning("the model could not be judged", exc_info=error)
        return NotJudged(describe(error))
    if not math.isfinite(judged.value):
        return NotJudged(f"the {judged.metric} on held-out data is {judged.value:g}")
    if not math.isfinite(judged.loss) and not build_task(config).judges:
        return NotJudged(f"the loss on held-out data is {judged.loss:g} ({judged.line()})")
    return judged


def show(config: Config, modules: Mapping[str, nn.Module]) -> Mapping[str, bytes]:
    """Files with outputs of the composed stages, by name, where the task has some. Raises TaskError."""
    with _as_task_error("what the task shows cannot be made"):
        task = build_task(config)
        return task.show(composed(config, modules))


def composed(config: Config, modules: Mapping[str, nn.Module]) -> Forward:
    """The stages one behind the other, in eval mode."""
    stages = [modules[stage].eval() for stage in config.stages]
    link(stages)

    @torch.no_grad()
    def forward(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return run_stages(stages, inputs)

    return forward


def evaluate(task: Task, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
    """Metric, mean loss and number of the samples in `heldout`."""
    if task.judges:
        return _judged(task, heldout, forward)
    totals: dict[str, float] = {}
    loss = 0.0
    for batch in heldout_batches(task, heldout):
        outputs = forward(batch.inputs)
        loss += float(task.loss(outputs, batch.labels)) * batch.size
        for name, value in task.score(outputs, batch.labels).items():
            totals[name] = totals.get(name, 0.0) + value
    count = int(totals.get("count", 0))
    return task.summarize(totals), loss / max(count, 1), count


@contextmanager
def _as_task_error(what: str) -> Iterator[None]:
    """What a library or a plugin raises, as one of our errors, which say what they are about."""
    try:
        yield
    except DistqatError:
        raise
    except Exception as error:
        raise TaskError(f"{what}: {describe(error)}") from error


def _judged(task: Task, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
    """As the task judges; where it fails for a sample, a DataError names that one."""
    seen: list[Sample] = []

    def noted() -> Iterator[Sample]:
        for sample in heldout:
            seen.append(sample)
            yield sample

    try:
        judged = task.judge(noted(), forward)
    except Exception:
        for sample in seen:
            batch_of(task, [sample])
        raise
    return judged
