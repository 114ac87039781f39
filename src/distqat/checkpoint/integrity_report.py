"""Checks every byte of the checkpoints in a folder, and says what is broken and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distqat.checkpoint.manifest import Manifest
from distqat.checkpoint.round_index import list_rounds
from distqat.checkpoint.shard import load_shard
from distqat.checkpoint.tensor_file import read_tensors
from distqat.checkpoint.trainer_part import read_trainer_part, trainer_files
from distqat.errors import CheckpointError


@dataclass(frozen=True)
class ShardReport:
    """One stage of one round, or a trainer's part; without `problems` every byte is as it was written."""

    path: Path
    manifest: Manifest | None
    problems: tuple[str, ...]


def verify(folder: Path, round: int | None = None, stages: Sequence[str] | None = None) -> list[ShardReport]:
    """Read all shards, oldest first, and the trainers' parts; or the shards of one round in all generations.

    Raises CheckpointError when there is none.
    """
    reports = []
    for entry in list_rounds(folder, stages):
        if round not in (None, entry.round):
            continue
        reports += [_check(entry.path / stage) for stage in sorted({*entry.manifests, *entry.broken})]
    if round is None:
        reports += [_check_trainer(path) for path in trainer_files(folder)]
    if not reports:
        which = "" if round is None else f" of round {round}"
        raise CheckpointError(f"{folder} holds no checkpoint{which}")
    return reports


def _check(path: Path) -> ShardReport:
    try:
        manifest = load_shard(path, expert="").manifest
    except CheckpointError as error:
        return ShardReport(path, None, (str(error),))
    problems = []
    for part in manifest.private:  # marked or not: a resume may need any of them
        try:
            read_tensors(path / part.file, manifest.files[part.file])
        except CheckpointError as error:
            problems.append(str(error))
    return ShardReport(path, manifest, tuple(problems))


def _check_trainer(path: Path) -> ShardReport:
    try:
        read_trainer_part(path)
    except CheckpointError as error:
        return ShardReport(path, None, (str(error),))
    return ShardReport(path, None, ())
