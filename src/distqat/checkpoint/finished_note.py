"""A note in the checkpoint folder that a run came to its end: its states are read, not gone on from."""

from __future__ import annotations

from pathlib import Path

from distqat.checkpoint.atomic_folders import locked
from distqat.checkpoint.tensor_file import replace_file
from distqat.errors import CheckpointError

NOTE = "finished"
LOCK_S = 10.0  # every server of a host notes it, at the same moment


def note_finished(folder: Path, generation: int) -> None:
    """States up to this generation belong to finished runs. Raises CheckpointError: it cannot be noted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait_s=LOCK_S):
            newest = max(generation, finished_generation(folder))
            replace_file(folder / NOTE, [f"{newest}\n".encode()])
    except OSError as error:
        raise CheckpointError(f"{folder / NOTE} could not be written: {error.strerror or error}") from error


def finished_generation(folder: Path) -> int:
    """The newest generation that is finished; -1 if none is."""
    try:
        return int((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return -1
