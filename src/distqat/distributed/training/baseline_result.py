"""The end of the baseline: its model is written, then judged; a start that finds it written judges it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from distqat.atomic_files import write_whole
from distqat.checkpoint.assembled_model import read_model
from distqat.config import Config
from distqat.distributed.assembly.evaluation import judge_or_say, load_all
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.coordination.model_saving import save_model_somewhere, save_shown
from distqat.distributed.coordination.run_end import judgement_fields, write_summary
from distqat.errors import CheckpointError, ModelError, RunFailed
from distqat.metrics.run_summary import RunSummary

logger = logging.getLogger(__name__)

NOTE = ".trained.json"
"""In the log folder, from when the model is written until the summary is: which run, model and figures."""


@dataclass(frozen=True)
class BaselineFigures:
    """What the training measured."""

    loss_first: float | None
    loss_last: float | None
    samples: int
    seconds: float
    data: dict[str, Any] = field(default_factory=dict)  # what the data set left out


@dataclass(frozen=True)
class TrainedBaseline:
    """A model that is written, and what its training measured."""

    path: Path
    figures: BaselineFigures


async def write_trained(
    config: Config, stages: Mapping[str, nn.Module], figures: BaselineFigures, generation: int | None = None
) -> TrainedBaseline:
    """Write the model, and a note of it for the next life of this process in the run `generation`."""
    trained = TrainedBaseline(await save_model_somewhere(config, stages), figures)
    _note(config, trained, generation)
    return trained


async def conclude_baseline(
    config: Config, stages: Mapping[str, nn.Module], trained: TrainedBaseline
) -> None:
    """Judge the model, write the summary. Raises RunFailed when it could not be judged."""
    figures = trained.figures
    judged = await asyncio.to_thread(judge_or_say, config, stages)
    await asyncio.to_thread(save_shown, config, stages)
    summary = RunSummary(
        mode="baseline",
        **judgement_fields(judged, build_task(config).metric),
        **asdict(figures),
        samples_per_s=figures.samples / max(figures.seconds, 1e-9),
        rounds=0,
        model=str(trained.path),
        logs=str(config.log_dir),
        checkpoints=str(config.checkpoint_dir),
    )
    failure = write_summary(summary, Path(config.log_dir))
    (Path(config.log_dir) / NOTE).unlink(missing_ok=True)
    if failure:
        raise RunFailed(failure)
    logger.info("finished: %s", summary.line())


def trained_before(
    config: Config, stages: Mapping[str, nn.Module], generation: int | None
) -> TrainedBaseline | None:
    """Load the model that an earlier life of this process wrote at the end of the run; None: it did not."""
    try:
        note = json.loads((Path(config.log_dir) / NOTE).read_text(encoding="utf-8"))
        if generation is None or note["began"] != str(generation):
            return None
        load_all(stages, read_model(Path(note["model"])))
        trained = TrainedBaseline(Path(note["model"]), BaselineFigures(**note["figures"]))
    except FileNotFoundError:
        return None
    except (CheckpointError, ModelError, OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("the model of an earlier start cannot be gone on from: %s", error)
        return None
    logger.info("the model was trained before this start: it is read from %s, and judged", trained.path)
    return trained


def _note(config: Config, trained: TrainedBaseline, generation: int | None) -> None:
    """For the next life of this process, if this one ends before the summary is written."""
    began = "" if generation is None else str(generation)
    note = {"began": began, "model": str(trained.path), "figures": asdict(trained.figures)}
    path = Path(config.log_dir) / NOTE
    try:
        write_whole(path, json.dumps(note))
    except OSError as error:
        logger.warning("%s is not written: %s", path, error.strerror)
