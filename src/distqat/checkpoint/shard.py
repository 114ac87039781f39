"""One stage of one round: the state that is written, and the state that is read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from distqat.checkpoint.manifest import SHARED, Manifest, as_json, read_manifest
from distqat.checkpoint.tensor_file import FileEntry, read_tensors
from distqat.diloco.digest import state_digest
from distqat.errors import CheckpointError

Named = dict[str, Tensor]
_WORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ShardState:
    """What a replica hands over: the committed state, and what is its own.

    `shared` are the flat tensors of a committed round (`anchor/...`, `outer/...`, `step/...`, `buffer/...`),
    `digest` their state digest. `private` maps the UID of a replica to what only it has: moments of the inner
    optimizer, random state, weights at `step`. `counters` may be anything that JSON holds.
    """

    generation: int
    round: int
    step: int
    digest: str
    shared: Mapping[str, Tensor]
    agreement: Mapping[str, Any]
    agreement_digest: str
    counters: Mapping[str, Any] = field(default_factory=dict)
    private: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def manifest(self, run: str, stage: str, files: Mapping[str, FileEntry]) -> Manifest:
        """What is said about it. Raises CheckpointError for names that would leave the folder."""
        for name in (stage, *self.private):
            if not _WORD.fullmatch(name):
                raise CheckpointError(f"{name!r} cannot be part of a file name")
        return Manifest(
            run=run,
            stage=stage,
            generation=self.generation,
            round=self.round,
            step=self.step,
            digest=self.digest,
            agreement_digest=self.agreement_digest,
            agreement=as_json(self.agreement, "the agreement"),
            counters=as_json(self.counters, "counters"),
            written_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            files=dict(files),
            private={expert: self.private_file(expert) for expert in self.private},
        )

    def private_file(self, expert: str) -> str:
        """A name per step, so that a newer one never overwrites what the manifest names."""
        return f"inner-{expert}-{self.step:08d}.safetensors"


@dataclass(frozen=True)
class LoadedShard:
    """A shard whose bytes are those that were written."""

    path: Path
    manifest: Manifest
    shared: Named
    private: dict[str, Named]
    refused: dict[str, str]
    """Private parts that are broken, by replica, and why; the shared state does not depend on them."""


@dataclass(frozen=True)
class Skipped:
    """A shard that was not used."""

    path: Path
    reason: str


def load_shard(folder: Path, expert: str | None = None) -> LoadedShard:
    """Read a shard, with the private part of one replica or of all.

    Raises CheckpointError when its manifest or its shared state is not what was written.
    """
    manifest = read_manifest(folder)
    shared = read_tensors(folder / SHARED, manifest.files[SHARED])
    if state_digest(shared) != manifest.digest:
        raise CheckpointError(f"{folder / SHARED} is not the state {manifest.digest[:12]} of its manifest")
    private, refused = {}, {}
    for name, file in manifest.private.items():
        if expert in (None, name):
            try:
                private[name] = read_tensors(folder / file, manifest.files[file])
            except CheckpointError as error:
                refused[name] = str(error)
    return LoadedShard(folder, manifest, shared, private, refused)


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two agreements differ."""
    missing = object()
    plain = as_json(mine, "the agreement")
    return sorted(key for key in {**plain, **theirs} if plain.get(key, missing) != theirs.get(key, missing))
