"""What a shard's `manifest.json` says, and when it is believed.

It names the shared state of a round, and the private parts of replicas. A part may carry a mark: the name of
a checkpoint step, under which every stage of a pipeline and its trainer wrote what is theirs. Parts stand in
the order in which they were written, so the last one of a replica is its newest even where a restored replica
counts its steps from a lower number again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from distqat.checkpoint.digested_json import believed, seal, unseal
from distqat.checkpoint.tensor_file import FileEntry
from distqat.errors import CheckpointError
from distqat.options import Options

MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
FORMAT = 2
_UNMARKED = 1  # the format before parts could carry a mark; its checkpoints load as ever
_FILE = re.compile(r"(shared|inner-[A-Za-z0-9._-]+)\.safetensors")
MARKS_KEPT = 2  # per replica and round: the newest may be one that another stage did not live to write
_WORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LONGEST_MARK = 100


class PrivatePart(Options):
    """One file that only its replica needs."""

    expert: str
    file: str
    step: int
    mark: str | None = None


class Manifest(Options):
    """One stage of one round: whose it is, and size and sha256 of each of its files."""

    format: int = FORMAT
    run: str
    stage: str
    generation: int
    round: int
    step: int
    digest: str
    """State digest of the shared tensors, as the commit log has it."""
    agreement_digest: str
    agreement: dict[str, JsonValue]
    """The settings behind the digest, so that a refusal can name the key."""
    counters: dict[str, JsonValue]
    written_at: str
    """UTC, ISO 8601."""
    files: dict[str, FileEntry]
    private: list[PrivatePart]
    """What belongs to one replica alone, in the order in which it was written."""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> bytes:
        """The file, with a digest over itself."""
        return seal(self.model_dump(mode="json"))


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `.../{generation}-{round}/{stage}`. Raises CheckpointError if it is not believed."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}{_others(folder)}") from error
    manifest = believed(Manifest, path, _upgraded(unseal(path, data)), FORMAT)
    _check_names(path, manifest)
    return manifest


def round_name(generation: int, round: int) -> str:
    """Name of the folder of a round; names sort as (generation, round) do."""
    return f"{generation:04d}-{round:06d}"


def check_names(words: Iterable[str], mark: str | None) -> None:
    """Raises CheckpointError for words and a mark that would leave the folder as part of a file name."""
    for word in (*words, *([] if mark is None else [mark])):
        if not _WORD.fullmatch(word):
            raise CheckpointError(f"{word!r} cannot be part of a file name")
    if mark is not None and len(mark) > _LONGEST_MARK:
        raise CheckpointError(f"the mark {mark[:20]!r}... has more than {_LONGEST_MARK} characters")


def renewed(standing: Sequence[PrivatePart], own: Sequence[PrivatePart]) -> list[PrivatePart]:
    """The parts after `own` have been added: of a replica the newest unmarked and the last marked ones."""
    replaced = {(part.expert, part.mark) for part in own}
    parts = [part for part in standing if (part.expert, part.mark) not in replaced] + list(own)
    marked: Counter[str] = Counter()
    stays = []
    for part in reversed(parts):
        marked[part.expert] += part.mark is not None
        if part.mark is None or marked[part.expert] <= MARKS_KEPT:
            stays.append(part)
    return stays[::-1]


def chosen(parts: Sequence[PrivatePart], expert: str | None, mark: str | None) -> dict[str, PrivatePart]:
    """The newest part of a replica or of all, of a mark or of any."""
    return {
        part.expert: part for part in parts if expert in (None, part.expert) and mark in (None, part.mark)
    }


def _upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an older release as this one writes them."""
    private = fields.get("private")
    if fields.get("format") != _UNMARKED or not isinstance(private, dict):
        return fields
    parts = [{"expert": e, "file": file, "step": fields.get("step")} for e, file in private.items()]
    return {**fields, "format": FORMAT, "private": parts}


def _check_names(path: Path, manifest: Manifest) -> None:
    stage, round = path.parent.name, path.parent.parent.name
    if manifest.stage != stage:
        raise CheckpointError(f"{path} is of stage {manifest.stage!r}, its folder is of {stage!r}")
    if round_name(manifest.generation, manifest.round) != round:
        raise CheckpointError(
            f"{path} is of {round_name(manifest.generation, manifest.round)}, its folder is {round}"
        )
    odd = [name for name in manifest.files if not _FILE.fullmatch(name)]
    if odd:
        raise CheckpointError(f"{path} names {odd[0]!r}: only safetensors files beside it are read")
    if not {SHARED, *(part.file for part in manifest.private)} <= manifest.files.keys():
        raise CheckpointError(f"{path} does not list all of its files")


def _others(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return f" (beside it: {', '.join(names[:3])}; only safetensors with a manifest are read)" if names else ""
