"""Earlier runs of a checkpoint folder are kept beside the new one: `{folder}/previous/TIME`.

What lies there is a checkpoint folder like any other. Of runs that left a model the newest three are kept, of
others the newest one: a start that failed must not push a trained model out.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distqat.checkpoint.atomic_folders import locked, set_aside
from distqat.checkpoint.inventory import MODEL, PREVIOUS, of_rounds
from distqat.checkpoint.round_index import RoundFolder, list_rounds
from distqat.checkpoint.run_card import CARD, read_card
from distqat.checkpoint.tensor_file import disk_errors
from distqat.checkpoint.trainer_part import TRAINERS, read_trainer_part, trainer_files
from distqat.errors import CheckpointError

logger = logging.getLogger(__name__)

KEEP_FINISHED = 3
KEEP_OTHERS = 1
LOCK_S = 30.0


@dataclass(frozen=True)
class EarlierRun:
    """Where an earlier run went, what there is of it, and which older ones were deleted to make room."""

    place: Path
    what: str
    deleted: tuple[str, ...]

    def line(self) -> str:
        """One sentence."""
        gone = f"; deleted there: {', '.join(self.deleted)}" if self.deleted else ""
        return (
            f"an earlier run is kept in {self.place}/ ({self.what}); the newest {KEEP_FINISHED} with a model "
            f"stay there, and {KEEP_OTHERS} without{gone}"
        )


def keep_earlier(folder: Path, before: int) -> EarlierRun | None:
    """Move what runs before generation `before` left in `folder` into its `previous/`; None: nothing.

    Several processes may do so at once. Raises CheckpointError when it cannot be moved.
    """
    if not folder.is_dir():
        return None
    with disk_errors(folder / PREVIOUS), locked(folder, wait_s=LOCK_S):
        rounds = [entry for entry in list_rounds(folder) if entry.generation < before]
        files = [path for path in (folder / MODEL, folder / CARD) if _generation(path) < before]
        parts = [path for path in trainer_files(folder) if _generation(path) < before]
        found = [*(entry.path for entry in rounds), *files, *parts]
        return _move(folder, found, _what(rounds, files)) if found else None


def keep_other_model(folder: Path, run: str) -> EarlierRun | None:
    """Move a model file aside that another run, which shares the folder, has just put there."""
    path = folder / MODEL
    try:
        card = read_card(path) if path.is_file() else None
    except CheckpointError:
        return None
    if card is None or card.run == run:
        return None
    with disk_errors(folder / PREVIOUS), locked(folder, wait_s=LOCK_S):
        return _move(folder, [path], f"the model of run {card.run!r}")


def _move(folder: Path, found: Sequence[Path], what: str) -> EarlierRun:
    ended = max(path.stat().st_mtime_ns for path in found)
    second = time.strftime("%Y%m%d-%H%M%S", time.localtime(ended // 10**9))
    kept = folder / PREVIOUS
    place = _free(kept / f"{second}.{ended % 10**9 // 10**3:06}")  # as log folders name them
    place.mkdir(parents=True)
    for path in found:
        target = place / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return EarlierRun(place, what, tuple(_make_room(kept, place)))


def _free(place: Path) -> Path:
    number, wanted = 1, place
    while place.exists():
        number += 1
        place = wanted.with_name(f"{wanted.name}-{number}")
    return place


def _make_room(kept: Path, newest: Path) -> list[str]:
    """Delete the oldest beyond what is kept, never the one that was just moved; their names."""
    entries = sorted(path for path in kept.iterdir() if path.is_dir() and not path.name.startswith("."))
    finished = [path for path in entries if (path / MODEL).is_file()]
    others = [path for path in entries if path not in finished]
    outdated = [*finished[:-KEEP_FINISHED], *others[:-KEEP_OTHERS]]
    deleted = []
    for path in sorted(path for path in outdated if path != newest):
        try:
            shutil.rmtree(set_aside(path))
            deleted.append(path.name)
        except OSError as error:
            logger.warning("%s, an old run, could not be deleted: %s", path, error)
    return deleted


def _generation(path: Path) -> float:
    """Of the run that wrote a file; by its time where it does not say. Infinite where the file is missing."""
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    try:
        if path.parent.name == TRAINERS:
            return read_trainer_part(path).generation
        card = read_card(path.parent) if path.name == CARD else None
    except CheckpointError:
        return written
    return written if card is None else card.generation


def _what(rounds: Sequence[RoundFolder], files: Sequence[Path]) -> str:
    names = [path.name for path in files if path.name != CARD]
    return " and ".join([*names, *of_rounds(rounds)]) or "what trainers noted"
