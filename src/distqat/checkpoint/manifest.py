"""What a shard's `manifest.json` says, and when it is believed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from distqat.checkpoint.digested_json import believed, seal, unseal
from distqat.checkpoint.replica_parts import PrivatePart
from distqat.checkpoint.tensor_file import FileEntry
from distqat.errors import CheckpointError
from distqat.options import Options

MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
FORMAT = 2
_UNMARKED = 1  # the format before parts could carry a mark; its checkpoints load as ever
_FILE = re.compile(r"(shared|inner-[A-Za-z0-9._-]+)\.safetensors")


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
