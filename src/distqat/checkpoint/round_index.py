"""What a checkpoint folder holds, by round; reads manifests, not tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distqat.checkpoint.atomic_folders import is_temporary
from distqat.checkpoint.manifest import Manifest, read_manifest, round_name
from distqat.errors import CheckpointError

_ROUND = re.compile(r"([0-9]{4,12})-([0-9]{6,12})")


@dataclass(frozen=True)
class RoundFolder:
    """One round: the manifests of its stages, and what is wrong with those that cannot be read."""

    path: Path
    generation: int
    round: int
    manifests: dict[str, Manifest]
    broken: dict[str, str]
    wanted: tuple[str, ...]
    """The stages of the model as far as known, in order."""

    @property
    def missing(self) -> list[str]:
        """Stages without a readable manifest."""
        return [stage for stage in self.wanted if stage not in self.manifests]

    @property
    def complete(self) -> bool:
        """Whether every stage of the model is there."""
        return not self.missing


def list_rounds(folder: Path, stages: Sequence[str] | None = None) -> list[RoundFolder]:
    """The rounds of a checkpoint folder, oldest first; empty where the folder does not exist.

    `stages` are those of the model; without, what the manifests say, else all that appear in the folder.
    """
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        match = _ROUND.fullmatch(path.name)
        if match and path.is_dir() and path.name == round_name(int(match[1]), int(match[2])):
            found.append((int(match[1]), int(match[2]), path, *_shards(path)))
    found.sort(key=lambda entry: entry[:2])
    seen = sorted({stage for entry in found for stage in (*entry[3], *entry[4])})
    return [
        RoundFolder(path, generation, round, manifests, broken, _wanted(stages, manifests, seen))
        for generation, round, path, manifests, broken in found
    ]


def _shards(path: Path) -> tuple[dict[str, Manifest], dict[str, str]]:
    manifests, broken = {}, {}
    try:
        shards = sorted(shard for shard in path.iterdir() if not is_temporary(shard))
    except FileNotFoundError:  # pruned meanwhile
        return {}, {}
    for shard in shards:
        try:
            manifests[shard.name] = read_manifest(shard)
        except CheckpointError as error:
            broken[shard.name] = str(error)
    return manifests, broken


def _wanted(
    stages: Sequence[str] | None, manifests: dict[str, Manifest], seen: Sequence[str]
) -> tuple[str, ...]:
    if stages is not None:
        return tuple(stages)
    for manifest in manifests.values():
        said = manifest.agreement.get("stages")
        if isinstance(said, list) and said:
            return tuple(map(str, said))
    return tuple(seen)
