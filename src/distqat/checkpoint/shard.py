"""One stage of one round: the state that is written, and the state that is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from distqat.checkpoint.digested_json import as_json
from distqat.checkpoint.manifest import SHARED, Manifest, read_manifest
from distqat.checkpoint.replica_parts import PrivatePart, check_mark, check_words, chosen
from distqat.checkpoint.tensor_file import FileEntry, read_tensors
from distqat.diloco.tensor_digest import state_digest
from distqat.errors import CheckpointError

Named = dict[str, Tensor]


@dataclass(frozen=True)
class ShardState:
    """What a replica hands over: the committed state, and what is its own.

    `shared` are the flat tensors of a committed round (`anchor/...`, `outer/...`, `step/...`, `buffer/...`),
    `digest` their state digest. `private` maps the UID of a replica to what only it has: moments of the inner
    optimizer, random state, weights at `step`. `mark` names the checkpoint step that `private` is of, if it
    is of one. `counters` may be anything that JSON holds.
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
    mark: str | None = None

    def manifest(
        self, run: str, stage: str, files: Mapping[str, FileEntry], parts: Sequence[PrivatePart] = ()
    ) -> Manifest:
        """What is said about it. Raises CheckpointError for names that would leave the folder."""
        check_words((stage, *self.private))
        if self.mark is not None:
            check_mark(self.mark)
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
            private=list(parts),
        )

    def private_part(self, expert: str, entry: FileEntry) -> PrivatePart:
        """Its name tells the content, so that a newer one never overwrites what the manifest names."""
        what = f"{self.step:08d}" if self.mark is None else self.mark
        file = f"inner-{expert}-{what}-{entry.sha256[:12]}.safetensors"
        return PrivatePart(expert=expert, file=file, step=self.step, mark=self.mark)


@dataclass(frozen=True)
class LoadedShard:
    """A shard whose bytes are those that were written."""

    path: Path
    manifest: Manifest
    shared: Named
    private: dict[str, Named]
    refused: dict[str, str]
    """Private parts that are broken, by replica, and why; the shared state does not depend on them."""
    parts: dict[str, PrivatePart] = field(default_factory=dict)
    """Step and mark of what `private` holds."""


@dataclass(frozen=True)
class SkippedShard:
    """A shard that was not used."""

    path: Path
    reason: str


def load_shard(folder: Path, expert: str | None = None, mark: str | None = None) -> LoadedShard:
    """Read a shard, with the newest private part of one replica or of all, or with those of a mark.

    Raises CheckpointError when its manifest or its shared state is not what was written, or nobody wrote
    under that mark.
    """
    manifest = read_manifest(folder)
    shared = read_tensors(folder / SHARED, manifest.files[SHARED])
    if state_digest(shared) != manifest.digest:
        raise CheckpointError(f"{folder / SHARED} is not the state {manifest.digest[:12]} of its manifest")
    parts = chosen(manifest.private, expert, mark)
    if mark is not None and not parts:
        raise CheckpointError(f"{folder} holds nothing under mark {mark!r}")
    private, refused = {}, {}
    for name, part in parts.items():
        try:
            private[name] = read_tensors(folder / part.file, manifest.files[part.file])
        except CheckpointError as error:
            refused[name] = str(error)
    return LoadedShard(folder, manifest, shared, private, refused, {name: parts[name] for name in private})


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two agreements differ."""
    missing = object()
    plain = as_json(mine, "the agreement")
    return sorted(key for key in {**plain, **theirs} if plain.get(key, missing) != theirs.get(key, missing))
