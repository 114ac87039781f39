"""Writes one stage of a round, whole or not at all; adds what is a replica's own where the state stands.

A shard is written under a temporary name beside its place, synced and renamed. Replicas of a stage on one
host write the same shared state: who comes second finds it, verifies it and adds what is its own.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from distqat.checkpoint.atomic_folders import locked, set_aside, sync_folder, temporary_folder
from distqat.checkpoint.manifest import MANIFEST, SHARED, Manifest, read_manifest, round_name
from distqat.checkpoint.replica_parts import PrivatePart, renewed
from distqat.checkpoint.shard import ShardState
from distqat.checkpoint.tensor_file import FileEntry, check_file, disk_errors, write_synced, write_tensors
from distqat.errors import CheckpointError
from distqat.failpoints import failpoint

logger = logging.getLogger(__name__)

LOCK_S = 30.0  # renames and one digest are done under the lock


def write_shard(folder: Path, run: str, stage: str, state: ShardState) -> Path:
    """Write a stage of a round, or add to it; its folder, once it survives a power cut.

    Raises CheckpointError when it cannot be written (disk full); what was there before stays, and temporary
    files go. So too when another state stands for this round: a new history needs a new generation.
    """
    state.manifest(run, stage, {})  # whatever cannot be written is found before anything is
    place = folder / round_name(state.generation, state.round)
    target = place / stage
    try:
        with disk_errors(target), temporary_folder(place, stage) as temporary:
            parts, files = _write_private(temporary, state)
            known = _valid(target)
            if known is None:
                files[SHARED] = write_tensors(temporary / SHARED, state.shared)
            with locked(place, wait_s=LOCK_S):
                standing = _valid(target, known)  # again: another replica may have added to it
                if standing is None:
                    if SHARED not in files:
                        files[SHARED] = write_tensors(temporary / SHARED, state.shared)
                    _place(temporary, target, state.manifest(run, stage, files, parts))
                else:
                    files[SHARED] = standing.files[SHARED]
                    _add(temporary, target, standing, state.manifest(run, stage, files, parts))
            for each in (folder, folder.parent):
                sync_folder(each)
    except CheckpointError:
        with suppress(OSError):  # a round without any stage; not if others use it
            place.rmdir()
        raise
    return target


def _write_private(temporary: Path, state: ShardState) -> tuple[list[PrivatePart], dict[str, FileEntry]]:
    parts, files = [], {}
    for expert, tensors in state.private.items():
        entry = write_tensors(temporary / "private", tensors)
        part = state.private_part(expert, entry)
        (temporary / "private").rename(temporary / part.file)
        parts.append(part)
        files[part.file] = entry
    return parts, files


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
