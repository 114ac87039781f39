"""One stage of one round: written whole or not at all, and read back only as it was written.

A shard is written under a temporary name beside its place, synced and renamed. Replicas of a stage on one
host write the same shared state: who comes second finds it, verifies it and adds what is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from distqat.checkpoint.atomic_folders import locked, set_aside, sync_folder, temporary_folder
from distqat.checkpoint.digested_json import as_json
from distqat.checkpoint.manifest import (
    MANIFEST,
    SHARED,
    Manifest,
    PrivatePart,
    check_names,
    chosen,
    read_manifest,
    renewed,
    round_name,
)
from distqat.checkpoint.tensor_file import (
    check_file,
    disk_errors,
    read_tensors,
    write_synced,
    write_tensors,
)
from distqat.diloco.tensor_digest import state_digest
from distqat.errors import CheckpointError
from distqat.failpoints import failpoint

logger = logging.getLogger(__name__)

LOCK_S = 30.0  # renames and one digest are done under the lock
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


def write_shard(folder: Path, run: str, stage: str, state: ShardState) -> Path:
    """Write a stage of a round, or add to it; its folder, once it survives a power cut.

    Raises CheckpointError when it cannot be written (disk full); what was there before stays, and temporary
    files go. So too when another state stands for this round: a new history needs a new generation.
    """
    own = _manifest(run, stage, state)  # whatever cannot be written is found before anything is
    place = folder / round_name(state.generation, state.round)
    target = place / stage
    try:
        with disk_errors(target), temporary_folder(place, stage) as temporary:
            for expert, tensors in state.private.items():
                _write_private(temporary, own, expert, state.mark, tensors)
            known = _valid(target)
            if known is None:
                own.files[SHARED] = write_tensors(temporary / SHARED, state.shared)
            with locked(place, wait_s=LOCK_S):
                standing = _valid(target, known)  # again: another replica may have added to it
                if standing is None:
                    if SHARED not in own.files:
                        own.files[SHARED] = write_tensors(temporary / SHARED, state.shared)
                    _place(temporary, target, own)
                else:
                    own.files[SHARED] = standing.files[SHARED]
                    _add(temporary, target, standing, own)
            for each in (folder, folder.parent):
                sync_folder(each)
    except CheckpointError:
        with suppress(OSError):  # a round without any stage; not if others use it
            place.rmdir()
        raise
    return target


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


def _manifest(run: str, stage: str, state: ShardState) -> Manifest:
    """Without files yet. Raises CheckpointError for names that leave the folder, or what is not JSON."""
    check_names((stage, *state.private), state.mark)
    return Manifest(
        run=run,
        stage=stage,
        generation=state.generation,
        round=state.round,
        step=state.step,
        digest=state.digest,
        agreement_digest=state.agreement_digest,
        agreement=as_json(state.agreement, "the agreement"),
        counters=as_json(state.counters, "counters"),
        written_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files={},
        private=[],
    )


def _write_private(
    temporary: Path, own: Manifest, expert: str, mark: str | None, tensors: Mapping[str, Tensor]
) -> None:
    """Its name tells the content, so that a newer one never overwrites what the manifest names."""
    entry = write_tensors(temporary / "private", tensors)
    file = f"inner-{expert}-{own.step:08d}" if mark is None else f"inner-{expert}-{mark}"
    file += f"-{entry.sha256[:12]}.safetensors"
    (temporary / "private").rename(temporary / file)
    own.private.append(PrivatePart(expert=expert, file=file, step=own.step, mark=mark))
    own.files[file] = entry


def _place(temporary: Path, target: Path, manifest: Manifest) -> None:
    """Nothing valid stands there: the whole folder goes into place in one rename."""
    failpoint("checkpoint.manifest")
    write_synced(temporary / MANIFEST, [manifest.to_json()])
    sync_folder(temporary)
    if target.exists():
        logger.warning("%s is broken and is written again", target)
        set_aside(target)
    failpoint("checkpoint.rename")
    temporary.rename(target)
    sync_folder(target.parent)


def _add(temporary: Path, target: Path, standing: Manifest, own: Manifest) -> None:
    """The state stands there: add private parts; the manifest changes last, and old parts go after it."""
    for key in ("run", "agreement_digest", "digest"):
        ours, theirs = getattr(own, key), getattr(standing, key)
        if ours != theirs:
            raise CheckpointError(
                f"{target} holds another state, of {key} {theirs[:12]!r}, not {ours[:12]!r}; "
                "continue from it, use a new generation, or move it away"
            )
    if not own.private:
        return
    private = renewed(standing.private, own.private)
    names = {SHARED, *(part.file for part in private)}
    files = {name: entry for name, entry in {**standing.files, **own.files}.items() if name in names}
    merged = own if own.step >= standing.step else standing
    failpoint("checkpoint.manifest")
    body = merged.model_copy(update={"private": private, "files": files}).to_json()
    write_synced(temporary / MANIFEST, [body])
    for part in own.private:
        (temporary / part.file).rename(target / part.file)
    sync_folder(target)
    failpoint("checkpoint.rename")
    (temporary / MANIFEST).replace(target / MANIFEST)
    sync_folder(target)
    for name in standing.files.keys() - names:
        (target / name).unlink(missing_ok=True)


def _valid(target: Path, known: Manifest | None = None) -> Manifest | None:
    """The manifest of a shard whose shared state is as written; None if there is none.

    What `known` says was read just before and is not read again.
    """
    if not target.exists():
        return None
    try:
        manifest = read_manifest(target)
        if known is None or manifest.files[SHARED] != known.files[SHARED]:
            check_file(target / SHARED, manifest.files[SHARED])
    except CheckpointError as error:
        logger.info("%s", error)
        return None
    return manifest
