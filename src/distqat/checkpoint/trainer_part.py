"""A trainer's part of a checkpoint step: counters, position in the data, what may change between runs.

    {folder}/trainers/{mark}.json

Written as everything here: under a temporary name in the same folder, synced, renamed, the folder synced.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field, JsonValue

from distqat.checkpoint.atomic_folders import remove_leftovers, sync_folder
from distqat.checkpoint.digested_json import as_json, believed, seal, unseal
from distqat.checkpoint.manifest import check_names
from distqat.checkpoint.tensor_file import disk_errors, replace_file
from distqat.errors import CheckpointError
from distqat.options import Options

logger = logging.getLogger(__name__)

TRAINERS = "trainers"
FORMAT = 1


class TrainerPart(Options):
    """What the trainer of a pipeline goes on from."""

    format: int = FORMAT
    run: str
    generation: int
    pipeline: int
    life: int
    """Of the trainer's process; a later one is larger."""
    step: int
    """Trained steps."""
    taken: int
    """Steps by their ids, those that calibrated or were given up included."""
    mark: str
    samples: int
    """Trained in total by this pipeline."""
    data: dict[str, JsonValue] | None = None
    """The data server's position after the step."""
    scaler: dict[str, JsonValue] = Field(default_factory=dict)
    """Scale of the loss, and how it moves."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """What may change between two runs, and has to be said when it did."""
    written_at: str
    """UTC, ISO 8601."""

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Larger is newer."""
        return self.generation, self.life, self.step, self.taken


def write_trainer_part(folder: Path, part: TrainerPart, keep: int = 4) -> Path:
    """Write a part, delete all but the last `keep` of its pipeline; the file, once it survives a power cut.

    Raises CheckpointError when it cannot be written; what was there before stays.
    """
    if keep < 1:
        raise CheckpointError(f"{folder}: at least one trainer's part must be kept, not {keep}")
    check_names((), part.mark)
    path = folder / TRAINERS / f"{part.mark}.json"
    body = seal(as_json(part.model_dump(mode="python"), f"the trainer's part {part.mark}"))
    with disk_errors(path):
        replace_file(path, [body], "checkpoint.trainer_part.rename")
        for each in (folder, folder.parent):
            sync_folder(each)
    _prune(folder, part, keep)
    return path


def read_trainer_part(path: Path) -> TrainerPart:
    """One part. Raises CheckpointError if it is not as it was written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    part = believed(TrainerPart, path, unseal(path, data), FORMAT)
    if path.name != f"{part.mark}.json":
        raise CheckpointError(f"{path} is of mark {part.mark!r}")
    return part


def trainer_files(folder: Path) -> list[Path]:
    """The files that should be trainers' parts, by name."""
    return sorted(p for p in (folder / TRAINERS).glob("*") if not p.name.startswith("."))


def read_trainer_parts(folder: Path, run: str) -> list[TrainerPart]:
    """The parts of a run, newest first; what is broken or of another run is skipped and named in the log."""
    parts = []
    for path in trainer_files(folder):
        try:
            part = read_trainer_part(path)
            if part.run != run:
                raise CheckpointError(f"{path} is of run {part.run!r}, not of {run!r}")
            parts.append(part)
        except CheckpointError as error:
            logger.warning("trainer's part skipped: %s", error)
    return sorted(parts, key=lambda part: part.order, reverse=True)


def _prune(folder: Path, newest: TrainerPart, keep: int) -> None:
    """Parts of the same pipeline that newer ones have replaced; never the one that was just written."""
    own = []
    for path in trainer_files(folder):
        try:
            part = read_trainer_part(path)
        except CheckpointError:  # it is named when somebody wants to resume
            continue
        if (part.run, part.pipeline) == (newest.run, newest.pipeline) and part.mark != newest.mark:
            own.append((part.order, path))
    own.sort(reverse=True)
    try:
        for _, path in own[keep - 1 :]:
            path.unlink(missing_ok=True)
        remove_leftovers(folder / TRAINERS)
    except OSError as error:
        logger.info("trainers' parts are not pruned now: %s", error)
