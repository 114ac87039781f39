"""A look at the first batch of a run, as the model sees it: a file for people, and what is odd about it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from distqat.config import Config
from distqat.data.reading_errors import told
from distqat.data.source import Source, class_names
from distqat.process import notice
from distqat.tasks.base import Batch, Task
from distqat.tasks.contact_sheet import contact_sheet

logger = logging.getLogger(__name__)

SHEET = "samples.png"
LOOK = "the model can tell them from nothing; look at how the data is read"


def look_at(config: Config, task: Task, source: Source, batch: Batch) -> None:
    """Write the sheet of a task with pictures, name it, and say what is odd."""
    sheet = write_sheet(task, batch, class_names(source), Path(config.log_dir))
    if sheet is not None:
        logger.info("the first batch as the model sees it: %s", sheet)
    for sentence in oddities(batch):
        notice(sentence)


def write_sheet(task: Task, batch: Batch, classes: Sequence[str], folder: Path) -> Path | None:
    """`samples.png` in the log folder; None for a task without pictures, or where it cannot be written."""
    path = folder / SHEET
    try:
        pictures = task.pictures(batch)
        if pictures is None:
            return None
        images, labels = pictures
        sheet = contact_sheet(images, [_named(label, classes) for label in labels])
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sheet)
    except OSError as error:
        logger.warning("%s is not written: %s", path, error.strerror)
        return None
    except Exception as error:  # a plugin's pictures: only a look is lost
        logger.warning("%s is not made: %s", path, told(error), exc_info=True)
        return None
    return path


def oddities(batch: Batch) -> list[str]:
    """Sentences about inputs that say nothing: the same number everywhere, or the same for other labels."""
    inputs = [tensor for tensor in batch.inputs.values() if tensor.numel()]
    if batch.size < 2 or not inputs:
        return []
    if inputs[0].is_floating_point() and _constant(inputs[0].flatten()):
        value = float(inputs[0].flatten()[0])
        return [f"the first batch of {batch.size} samples holds nothing but the number {value:g}: {LOOK}"]
    if all(map(_constant, inputs)) and not all(map(_constant, batch.labels.values())):
        return [f"the {batch.size} samples of the first batch are equal and their labels are not: {LOOK}"]
    return []


def _constant(tensor: Tensor) -> bool:
    """Whether all entries along dim 0 are equal."""
    return bool((tensor == tensor[:1]).all())


def _named(label: str, classes: Sequence[str]) -> str:
    number = int(label) if label.isdecimal() else -1
    return f"{label} {classes[number]}" if 0 <= number < len(classes) else label
