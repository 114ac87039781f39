"""Checks every byte of the checkpoints in a folder, and says what is broken and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distqat.checkpoint.manifest import Manifest
from distqat.checkpoint.rounds import list_rounds
from distqat.checkpoint.shard import load_shard
from distqat.errors import CheckpointError


@dataclass(frozen=True)
class ShardReport:
    """One stage of one round; `problems` is empty when every byte is as it was written."""

    path: Path
    manifest: Manifest | None
    problems: tuple[str, ...]


def verify(folder: Path, round: int | None = None, stages: Sequence[str] | None = None) -> list[ShardReport]:
    """Read all shards, or those of one round in all generations; oldest first.

    Raises CheckpointError when there is none.
    """
    reports = []
    for entry in list_rounds(folder, stages):
        if round not in (None, entry.round):
            continue
        reports += [_check(entry.path / stage) for stage in sorted({*entry.manifests, *entry.broken})]
    if not reports:
        which = "" if round is None else f" of round {round}"
        raise CheckpointError(f"{folder} holds no checkpoint{which}")
    return reports


def _check(path: Path) -> ShardReport:
    try:
        shard = load_shard(path)
    except CheckpointError as error:
        return ShardReport(path, None, (str(error),))
    return ShardReport(path, shard.manifest, tuple(shard.refused.values()))
