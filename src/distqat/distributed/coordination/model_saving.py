"""The trained model as a file: in the checkpoint folder, or in the next place that can be written."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import nn

from distqat.checkpoint.assembled_model import TOLD, join, write_model
from distqat.checkpoint.earlier_runs import keep_other_model
from distqat.checkpoint.inventory import MODEL
from distqat.checkpoint.run_card import METADATA
from distqat.config import Config, agreement, quantization
from distqat.distributed.assembly.evaluation import show
from distqat.distributed.assembly.run_notes import card_of
from distqat.errors import CheckpointError, DistqatError
from distqat.failpoints import failpoint
from distqat.process import notice, waiting

logger = logging.getLogger(__name__)

AGAIN_S = 5.0  # between two looks whether there is a place for the model now


class NoPlace(CheckpointError):
    """No place can be written; the message names every one."""


def save_model(config: Config, modules: Mapping[str, nn.Module]) -> Path:
    """All stages as one safetensors file, written in one piece; where it is.

    Raises NoPlace; CheckpointError for what no file can hold.
    """
    failpoint("model.write")
    tensors = join({stage: modules[stage].state_dict() for stage in config.stages})
    metadata = {
        "run": config.experiment_prefix,
        TOLD: json.dumps(quantization(agreement(config, config.stages[0]))),
        METADATA: card_of(config, 0).to_share().to_json().decode(),
    }
    refused: list[str] = []
    for place in _places(config):
        try:
            _keep_others(config, place)
            write_model(place, tensors, metadata)
        except CheckpointError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            refused.append(str(error))
            continue
        if refused:
            notice(f"{refused[0]}: the model is saved as {place.absolute()}")
        return place
    raise NoPlace("; ".join(refused))


async def save_model_somewhere(config: Config, modules: Mapping[str, nn.Module]) -> Path:
    """As `save_model`; while no place can be written it waits for one and says so: nothing is lost."""
    with waiting("the disk to take the trained model") as wait:
        while True:
            try:
                return await asyncio.to_thread(save_model, config, modules)
            except NoPlace as error:
                wait.what = f"room for the trained model, which is nowhere else yet ({error})"
                logger.warning("%s", error)
            await asyncio.sleep(AGAIN_S)


def save_shown(config: Config, modules: Mapping[str, nn.Module]) -> None:
    """What the task has to look at goes into the log folder; what goes wrong with it is a warning."""
    try:
        shown = show(config, modules)
    except DistqatError as error:
        logger.warning("nothing to look at is written: %s", error)
        return
    for name, content in shown.items():
        path = Path(config.log_dir) / name
        try:
            path.write_bytes(content)
        except OSError as error:
            logger.warning("%s is not written: %s", path, error.strerror)
            continue
        logger.info("to look at: %s", path)


def _places(config: Config) -> Iterator[Path]:
    """Where the model may go, best first. Outside the checkpoint folder nothing is ever replaced."""
    yield config.checkpoint_dir / MODEL
    name = f"{config.experiment_prefix}.{MODEL}"
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home raises where there is none
    for folder in (config.log_dir, ".", home, tempfile.gettempdir()):
        if folder != "~":
            yield _free(Path(folder), name)


def _free(folder: Path, name: str) -> Path:
    place, number = folder / name, 1
    while place.exists():
        number += 1
        place = folder / f"{number}.{name}"
    return place


def _keep_others(config: Config, place: Path) -> None:
    """The model of another run that shares the folder is moved aside, not replaced."""
    if place.parent != config.checkpoint_dir:
        return
    earlier = keep_other_model(place.parent, config.experiment_prefix)
    if earlier is not None:
        notice(earlier.line())
