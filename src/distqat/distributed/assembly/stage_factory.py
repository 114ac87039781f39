"""From the configuration to stages and tasks: the same way for servers, the baseline and tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.config.schema import StageOptions
from distqat.data.open_source import open_source
from distqat.data.source import NoData, Source
from distqat.distributed.assembly.tied_weights import tied_stages
from distqat.distributed.assembly.vocabulary_check import check_tokenizer, vocabulary
from distqat.errors import ModelError
from distqat.models import build_stage, named_tensors, sample_input, stages_of
from distqat.models.causal_lm_stage import BlockStage
from distqat.models.teacher import Teacher, add_teacher, float_copy
from distqat.models.wav2vec2_stage import SpeechStage
from distqat.quant import (
    StageBoundary,
    TensorFlow,
    check_patterns,
    coverage,
    edges,
    module_names,
    quantize_module,
    record,
    report_of,
    tracked_norms,
)
from distqat.quant.quant_schedule import float_rounds
from distqat.tasks import Task, TaskSettings, get_task

SAMPLE_TOKENS = 8  # of the pass that shows who takes what: any length does


def build_task(config: Config) -> Task:
    """The task of the run. Raises TaskError, UnknownName."""
    return get_task(config.data.task_type, task_settings(config))


def task_settings(config: Config) -> TaskSettings:
    """What the configuration says to its task."""
    classes = [entry.num_classes for entry in config.model_pipeline.pipeline if entry.num_classes]
    return TaskSettings(
        num_classes=classes[-1] if classes else None,
        num_channels=config.data.num_channels,
        img_size=config.data.img_size,
        vocab_size=vocabulary(config),
        sequence_length=config.data.sequence_length,
        dataset_name=config.data.dataset_name,
        seed=config.seed,
        latent=_latent(config),
        options=config.data.options,
    )


def open_data(config: Config) -> Source:
    """The data set of the run; NoData for a task that acts. May wait for the hub. Raises DataError."""
    if build_task(config).plays:
        return NoData()
    return open_source(config.data, seed=config.seed)


def _latent(config: Config) -> int | None:
    """Numbers of noise that a generator among the stages takes; None: its default."""
    given = (entry.kwargs.get("latent") for entry in config.model_pipeline.pipeline)
    return next((size for size in given if isinstance(size, int)), None)


def build_module(config: Config, stage: str, *, quantize: bool = True, taught: bool = False) -> nn.Module:
    """One stage, initialised from the run's seed; in a quantized run with quantizers that calibrate.

    Only the granted founder of a stage keeps this initialisation; the others load the founder's. `taught`:
    for training, beside it the teacher that the configuration may want, which is not ready.
    Raises ModelError, UnknownName, QuantError.
    """
    position = config.stages.index(stage)
    entry = config.model_pipeline.pipeline[position]
    torch.manual_seed(stage_seed(config, stage))
    module = build_stage(entry.model_name, stage_kwargs(config, stage))
    if quantize and config.quant.enabled:
        teacher = teacher_for(config, stage, module) if taught else None
        flow = _flow(config, stage, module)
        boundary = _boundary(config, stage, module, flow) if flow else None
        first, last = position == 0, position == len(config.stages) - 1
        quantize_module(
            module, config.quant, stage=stage, first=first, last=last, flow=flow, boundary=boundary
        )
        if teacher is not None:
            add_teacher(module, teacher)
    return module


def teacher_for(config: Config, stage: str, module: nn.Module) -> Teacher | None:
    """A teacher of the float `module`, not ready; None where the configuration wants none of this stage."""
    options, last = config.quant.distillation, stage == config.stages[-1]
    wanted = options.share > 0 or (options.hidden > 0 and not last)
    if config.quant.teacher is None or not wanted:
        return None
    hidden = 0.0 if last else options.hidden
    return Teacher(float_copy(module), first=stage == config.stages[0], hidden=hidden)


def _flow(config: Config, stage: str, module: nn.Module) -> TensorFlow | None:
    """Which layer produces what, seen in one pass; None for a model that does not say what it takes."""
    sample = _sample(config, stage, module)
    try:
        return None if sample is None else record(module, sample)
    except (NotImplementedError, RuntimeError) as error:
        if not _wants_values(error):
            raise
        return None


def _wants_values(error: Exception) -> bool:
    """Whether it tells of an operation without a meta form, or of a choice that depends on values."""
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _sample(config: Config, stage: str, module: nn.Module) -> list[Tensor] | None:
    """A small input of the stage, on its device; None for a model that does not say what it takes.

    Zeros where it is float, whatever the model says, so that a choice by values is the same everywhere.
    """
    entry = config.model_pipeline.pipeline[config.stages.index(stage)]
    short = min(config.data.sequence_length, SAMPLE_TOKENS)
    sample = sample_input(entry.model_name, 2, {**stage_kwargs(config, stage), "sequence_length": short})
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if sample is None:
        return None
    tensors = [tensor.to(device) for tensor in sample.values()]
    return [torch.zeros_like(each) if each.is_floating_point() else each for each in tensors]


def quantization_lines(config: Config, stage: str, module: nn.Module) -> list[str]:
    """For the log at start: what of the stage is quantized, by bits, and what stays in float and why."""
    report = report_of(module)
    lines = [] if report is None else report.lines()
    in_float = float_rounds(config.diloco, config.quant.schedule)
    if report is not None and in_float:
        lines.append(f"  trains in float for {in_float} of {config.diloco.outer_steps} rounds")
    following = config.stages[config.stages.index(stage) + 1 :]
    if report is not None and following and config.model_pipeline.activations != "fp32":
        codes = f"integer codes of 8 bits, once calibrated (quantized by {report.sends})"
        lines.append(f"  sends to {following[0]}: {codes if report.sends else 'float'}")
    return lines + coverage(module, None if report is None else _sample(config, stage, module)).lines()


def _boundary(config: Config, stage: str, module: nn.Module, flow: TensorFlow) -> StageBoundary:
    """What of the tensors to the neighbours is quantized; both sides come to the same answer.

    The answer counts that stages give on the meta device, where each can build the other.
    """
    position = config.stages.index(stage)
    wants, has = _edges(config, stage, module, flow)
    wants, has = wants and position > 0, has and position + 1 < len(config.stages)
    if wants or has:
        own = _unbuilt_edges(config, stage)
        wants, has = wants and own[0], has and own[1]
    return StageBoundary(
        takes=wants and _unbuilt_edges(config, config.stages[position - 1])[1],
        sends=has and _unbuilt_edges(config, config.stages[position + 1])[0],
    )


def _unbuilt_edges(config: Config, stage: str) -> tuple[bool, bool]:
    with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        module = build_module(config, stage, quantize=False)
        flow = _flow(config, stage, module)
    return _edges(config, stage, module, flow) if flow else (False, False)


def _edges(config: Config, stage: str, module: nn.Module, flow: TensorFlow) -> tuple[bool, bool]:
    position = config.stages.index(stage)
    last = position == len(config.stages) - 1
    return edges(module, config.quant, flow, stage=stage, first=position == 0, last=last)


def feeds_norms(config: Config, stage: str, module: nn.Module) -> bool:
    """Whether there are BatchNorms in this stage or behind it: their statistics go by its weights."""
    if any(tracked_norms(module)):
        return True
    with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        following = config.stages[config.stages.index(stage) + 1 :]
        return any(any(tracked_norms(build_module(config, each, quantize=False))) for each in following)


def stage_kwargs(config: Config, stage: str) -> dict[str, object]:
    """What the stage's constructor may take."""
    entry = config.model_pipeline.pipeline[config.stages.index(stage)]
    data = config.data
    of_model = [e.stage for e in config.model_pipeline.pipeline if _model(e) == _model(entry)]
    place = {"stage_index": of_model.index(stage), "stage_count": len(of_model)}
    shapes = {"num_channels": data.num_channels, "img_size": data.img_size}
    return {"sequence_length": data.sequence_length, **place, **entry.kwargs, **shapes}


def _model(entry: StageOptions) -> str:
    return entry.model_name.rpartition(".")[0]


def stage_seed(config: Config, stage: str) -> int:
    """A seed of its own for every stage of a run."""
    digest = hashlib.sha256(f"{config.seed}|{stage}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_model(config: Config) -> None:
    """Find at start what would fail later: stages that do not fit together, patterns that match nothing.

    Stages are built and run on the meta device, so this takes neither memory nor time for the numbers.
    Raises ModelError, QuantError, DataError, UnknownName.
    """
    _check_cuts(config)
    check_tokenizer(config)
    tied_stages(config)
    names: dict[str, dict[str, bool]] = {}
    passed: dict[str, Tensor] | None = None
    spans: dict[str, tuple[int, int]] = {}
    with torch.device("meta"), torch.no_grad():
        for stage in config.stages:
            module = build_module(config, stage, quantize=False)
            names[stage] = module_names(module)
            if isinstance(module, (BlockStage, SpeechStage)):
                spans[stage] = module.span
            passed = _passes(config, stage, module, passed)
    _check_spans(spans)
    if config.quant.enabled:
        check_patterns(config.quant, names)


def _check_cuts(config: Config) -> None:
    """Each stage finds its own part in the cut, so all stages of a model must be told the same one.

    And what routers did is handed on by all stages or by none.
    """
    first: dict[str, StageOptions] = {}
    for entry in config.model_pipeline.pipeline:
        other = first.setdefault(_model(entry), entry)
        for key in ("cut", "balancing"):
            ours, theirs = entry.kwargs.get(key), other.kwargs.get(key)
            if ours != theirs:
                raise ModelError(
                    f"stage {entry.stage!r} is told {key}: {ours}, stage {other.stage!r} {key}: {theirs}; "
                    "write the same into every entry of the model"
                )


def _check_spans(spans: Mapping[str, tuple[int, int]]) -> None:
    """Blocks [start, stop) of stages in order: none of them twice, none left out."""
    for (before, (_, stop)), (stage, (start, _)) in pairwise(spans.items()):
        if start != stop:
            wrong = "are in both" if start < stop else "are in neither"
            raise ModelError(
                f"stage {before!r} ends in front of block {stop}, stage {stage!r} begins with block {start}: "
                f"those between {wrong}; mind layers, or stages and the numbers of bodies, of their entries"
            )


def _passes(
    config: Config, stage: str, module: nn.Module, given: dict[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """What a stage makes of what the stage before gives; None where its model does not say what it takes."""
    entry = config.model_pipeline.pipeline[config.stages.index(stage)]
    wanted = sample_input(entry.model_name, 2, stage_kwargs(config, stage))
    if wanted is None:
        return None
    if given is not None:
        ours, theirs = ({n: tuple(t.shape) for n, t in each.items()} for each in (wanted, given))
        if ours != theirs:
            raise ModelError(
                f"stage {stage!r} takes {ours}, the stage before it gives {theirs}: their entries in "
                "model_pipeline.pipeline do not fit together, or a stage between them is missing "
                f"({_model(entry)} has {', '.join(stages_of(_model(entry)))})"
            )
    try:
        return named_tensors(module.eval()(*(tensor.to("meta") for tensor in wanted.values())))
    except (NotImplementedError, RuntimeError) as error:
        if not _wants_values(error):
            raise
        return None  # found when real data comes
