"""Checkpoints of one run on one host: written whole, the last ones kept, the newest valid one found.

    {folder}/{generation}-{round}/{stage}/shared.safetensors, inner-{expert}-{step}.safetensors, manifest.json

A shard is written under a temporary name beside its place, synced and renamed. Replicas of a stage on one
host write the same shared state: who comes second finds it, verifies it and adds what is its own.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqat.checkpoint.folders import locked, set_aside, sync_folder, temporary_folder
from distqat.checkpoint.manifest import MANIFEST, SHARED, Manifest, read_manifest, round_name
from distqat.checkpoint.pruning import prune
from distqat.checkpoint.rounds import RoundFolder, list_rounds
from distqat.checkpoint.shard import LoadedShard, ShardState, Skipped, differing, load_shard
from distqat.checkpoint.tensor_file import FileEntry, check_file, write_synced, write_tensors
from distqat.errors import CheckpointError
from distqat.failpoints import failpoint

logger = logging.getLogger(__name__)

LOCK_S = 30.0  # renames and one digest are done under the lock


@dataclass(frozen=True)
class Search:
    """The newest valid shard, if any, and the newer ones that were not used."""

    shard: LoadedShard | None
    skipped: list[Skipped]


class CheckpointStore:
    """The checkpoint folder of a run. `stages` are those of the model, where the caller knows them."""

    def __init__(
        self, folder: Path | str, run: str, keep: int = 3, *, stages: Sequence[str] | None = None
    ) -> None:
        if keep < 1:
            raise CheckpointError(f"{folder}: at least one checkpoint must be kept, not {keep}")
        self._folder = Path(folder)
        self._run = run
        self._keep = keep
        self._stages = stages

    def write(self, stage: str, state: ShardState) -> Path:
        """Write a stage of a round, or add to it; its folder, once it survives a power cut.

        Raises CheckpointError when it cannot be written (disk full); what was there before stays, and
        temporary files go. So too when another state stands for this round: a new history needs a new
        generation.
        """
        state.manifest(self._run, stage, {})  # whatever cannot be written is found before anything is
        place = self._folder / round_name(state.generation, state.round)
        target = place / stage
        with _as_checkpoint_error(target), temporary_folder(place, stage) as temporary:
            files = _write_private(temporary, state)
            known = _valid(target)
            if known is None:
                files[SHARED] = write_tensors(temporary / SHARED, state.shared)
            with locked(place, wait_s=LOCK_S):
                standing = _valid(target, known)  # again: another replica may have added to it
                if standing is None:
                    if SHARED not in files:
                        files[SHARED] = write_tensors(temporary / SHARED, state.shared)
                    self._place(temporary, target, state.manifest(self._run, stage, files))
                else:
                    own = state.manifest(self._run, stage, {**files, SHARED: standing.files[SHARED]})
                    self._add(temporary, target, standing, own)
            for folder in (self._folder, self._folder.parent):
                sync_folder(folder)
        return target

    def newest_valid(
        self,
        stage: str,
        agreement_digest: str,
        *,
        agreement: Mapping[str, Any] | None = None,
        expert: str | None = None,
    ) -> LoadedShard | None:
        """The newest shard of a stage that can be used; each newer one that cannot is named in the log."""
        search = self.search(stage, agreement_digest, agreement=agreement, expert=expert)
        for skipped in search.skipped:
            logger.warning("checkpoint skipped: %s", skipped.reason)
        return search.shard

    def search(
        self,
        stage: str,
        agreement_digest: str,
        *,
        agreement: Mapping[str, Any] | None = None,
        expert: str | None = None,
    ) -> Search:
        """As `newest_valid`, with what was skipped. Newest by (generation, round).

        With `agreement`, the settings behind the digest, a refusal names the keys that differ; with
        `expert`, only the private part of that replica is read.
        """
        skipped: list[Skipped] = []
        for entry in reversed(self.rounds()):
            path = entry.path / stage
            if not path.exists():
                continue
            try:
                self._check_owner(path, read_manifest(path), agreement_digest, agreement)
                return Search(load_shard(path, expert), skipped)
            except CheckpointError as error:
                skipped.append(Skipped(path, str(error)))
        return Search(None, skipped)

    def rounds(self) -> list[RoundFolder]:
        """What is there, oldest first."""
        return list_rounds(self._folder, self._stages)

    def prune(self) -> list[Path]:
        """Delete rounds that need not be kept and leftovers of dead writers; what was deleted.

        Kept are the last `keep` complete rounds and the last `keep` of each stage. Never raises for a
        file that cannot be deleted.
        """
        return prune(self._folder, self.rounds(), self._keep)

    def _check_owner(
        self, path: Path, manifest: Manifest, digest: str, agreement: Mapping[str, Any] | None
    ) -> None:
        if manifest.run != self._run:
            raise CheckpointError(f"{path} is of run {manifest.run!r}, not of {self._run!r}")
        if manifest.agreement_digest != digest:
            keys = differing(agreement, manifest.agreement) if agreement is not None else []
            raise CheckpointError(
                f"{path} was written under other settings ({', '.join(keys) or 'another digest'}); "
                "set them back, or give the run another experiment_prefix"
            )

    def _place(self, temporary: Path, target: Path, manifest: Manifest) -> None:
        """Nothing valid stands there: the whole folder goes into place in one rename."""
        failpoint("checkpoint.manifest")
        write_synced(temporary / MANIFEST, [manifest.to_json().encode()])
        sync_folder(temporary)
        if target.exists():
            logger.warning("%s is broken and is written again", target)
            set_aside(target)
        failpoint("checkpoint.rename")
        temporary.rename(target)
        sync_folder(target.parent)

    def _add(self, temporary: Path, target: Path, standing: Manifest, own: Manifest) -> None:
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
        private = {**standing.private, **own.private}
        names = {SHARED, *private.values()}
        files = {name: entry for name, entry in {**standing.files, **own.files}.items() if name in names}
        merged = own if own.step >= standing.step else standing
        failpoint("checkpoint.manifest")
        text = merged.model_copy(update={"private": private, "files": files}).to_json()
        write_synced(temporary / MANIFEST, [text.encode()])
        for file in own.private.values():
            (temporary / file).rename(target / file)
        sync_folder(target)
        failpoint("checkpoint.rename")
        (temporary / MANIFEST).replace(target / MANIFEST)
        sync_folder(target)
        for name in standing.files.keys() - names:
            (target / name).unlink(missing_ok=True)


def _write_private(temporary: Path, state: ShardState) -> dict[str, FileEntry]:
    return {
        state.private_file(expert): write_tensors(temporary / state.private_file(expert), tensors)
        for expert, tensors in state.private.items()
    }


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


@contextmanager
def _as_checkpoint_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # a round without any stage; not if others use it
            target.parent.rmdir()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; make room or change param_mirror.checkpoint_dir" if full else ""
        raise CheckpointError(f"{target} could not be written: {error.strerror or error}{hint}") from error
