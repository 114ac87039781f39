"""Which rounds stay, and what goes: older ones, and leftovers of writers that died."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distqat.checkpoint.atomic_folders import is_temporary, locked, remove_leftovers, set_aside
from distqat.checkpoint.checkpoint_steps import rounds_of_last_marks
from distqat.checkpoint.manifest import MANIFEST, read_manifest
from distqat.checkpoint.round_index import RoundFolder
from distqat.errors import CheckpointError

logger = logging.getLogger(__name__)


def kept(rounds: Sequence[RoundFolder], keep: int) -> set[Path]:
    """The folders to keep: the last `keep` complete rounds, the last `keep` of every stage, its last marks'.

    The second holds back what a host needs that serves one stage only, and never sees a complete round;
    the third, what a resume needs where rounds are faster than checkpoint steps.
    """
    newest_first = list(reversed(rounds))
    stays = {entry.path for entry in [entry for entry in newest_first if entry.complete][:keep]}
    for stage in {stage for entry in rounds for stage in entry.manifests}:
        stays |= {e.path for e in [e for e in newest_first if stage in e.manifests][:keep]}
    return stays | rounds_of_last_marks(rounds)


def prune(folder: Path, rounds: Sequence[RoundFolder], keep: int) -> list[Path]:
    """Delete what `kept` does not name, oldest first, and leftovers of the dead; what was deleted.

    Rounds in which somebody writes are left alone. What cannot be deleted is logged, not raised.
    """
    if not folder.is_dir():
        return []
    stays = kept(rounds, keep)
    newest = max((index for index, entry in enumerate(rounds) if entry.path in stays), default=-1)
    removed: list[Path] = []
    for index, entry in enumerate(rounds):
        try:
            removed += remove_leftovers(entry.path)
            inside = list(entry.path.iterdir())
            if not inside:
                entry.path.rmdir()
            elif entry.path in stays or index > newest:
                removed += _remove_unlisted(entry)
            elif not any(map(is_temporary, inside)):
                with locked(entry.path, wait_s=0):
                    set_aside(entry.path)
                removed.append(entry.path)
        except (OSError, CheckpointError) as error:
            if entry.path.exists():  # else another process of this host prunes too, and was faster
                logger.info("not pruned now: %s: %s", entry.path, error)
    with suppress(FileNotFoundError):
        remove_leftovers(folder)
    return removed


def _remove_unlisted(entry: RoundFolder) -> list[Path]:
    """Private parts that a killed writer put in place but did not live to list."""
    removed = []
    with locked(entry.path, wait_s=0):
        for stage in entry.manifests:
            listed = {MANIFEST, *read_manifest(entry.path / stage).files}
            for path in (entry.path / stage).iterdir():
                if path.name not in listed and path.name.startswith("inner-"):
                    path.unlink(missing_ok=True)
                    removed.append(path)
    return removed
