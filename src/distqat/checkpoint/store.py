"""Checkpoints of one run on one host: written whole, the last ones kept, the newest valid one found.

{folder}/{generation}-{round}/{stage}/shared.safetensors, inner-{expert}-*.safetensors, manifest.json
{folder}/trainers/{mark}.json
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqat.checkpoint.checkpoint_steps import CheckpointMark, marks_of
from distqat.checkpoint.manifest import Manifest, read_manifest
from distqat.checkpoint.pruning import prune
from distqat.checkpoint.round_index import RoundFolder, list_rounds
from distqat.checkpoint.shard import LoadedShard, ShardState, SkippedShard, differing, load_shard, write_shard
from distqat.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewestShard:
    """The newest valid shard, if any, and the newer ones that were not used."""

    shard: LoadedShard | None
    skipped: list[SkippedShard]


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
        return write_shard(self._folder, self._run, stage, state)

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
    ) -> NewestShard:
        """As `newest_valid`, with what was skipped. Newest by (generation, round).

        With `agreement`, the settings behind the digest, a refusal names the keys that differ; with
        `expert`, only the private part of that replica is read.
        """
        skipped: list[SkippedShard] = []
        for entry in reversed(self.rounds()):
            path = entry.path / stage
            if not path.exists():
                continue
            try:
                self._check_owner(path, read_manifest(path), agreement_digest, agreement)
                return NewestShard(load_shard(path, expert), skipped)
            except CheckpointError as error:
                skipped.append(SkippedShard(path, str(error)))
        return NewestShard(None, skipped)

    def marks(self, stage: str, agreement_digest: str) -> list[CheckpointMark]:
        """The checkpoint steps that a stage has a part of, newest first; reads manifests only."""
        return marks_of(list(self._usable(stage, agreement_digest)), stage)

    def held(self, stage: str, agreement_digest: str) -> list[tuple[int, int, str]]:
        """(generation, round, state digest) of a stage's rounds, newest first; reads manifests only."""
        usable = [entry.manifests[stage] for entry in self._usable(stage, agreement_digest)]
        return [(m.generation, m.round, m.digest) for m in reversed(usable)]

    def load_mark(
        self,
        stage: str,
        mark: str,
        agreement_digest: str,
        *,
        agreement: Mapping[str, Any] | None = None,
        expert: str | None = None,
    ) -> LoadedShard:
        """A stage's part of a checkpoint step, verified, of one replica or of whoever wrote it last.

        `private` then holds that replica's part alone. Raises CheckpointError that names what is missing,
        broken or of other settings.
        """
        why: list[str] = []
        for found in marks_of(self.rounds(), stage):
            if found.mark != mark or expert not in (None, found.expert):
                continue
            try:
                self._check_owner(found.path, read_manifest(found.path), agreement_digest, agreement)
                shard = load_shard(found.path, found.expert, mark)
                if not shard.refused:
                    return shard
                why += shard.refused.values()
            except CheckpointError as error:
                why.append(str(error))
        reason = "; ".join(why[:3]) or "nobody wrote it here"
        raise CheckpointError(f"mark {mark!r} of stage {stage} in {self._folder} cannot be used: {reason}")

    def rounds(self) -> list[RoundFolder]:
        """What is there, oldest first."""
        return list_rounds(self._folder, self._stages)

    def prune(self) -> list[Path]:
        """Delete rounds of this run that need not be kept and leftovers of dead writers; what was deleted.

        Kept are the last `keep` complete rounds, the last `keep` of each stage, and those that the last two
        marks of a stage stand on. Never raises for a file that cannot be deleted.
        """
        own = [r for r in self.rounds() if all(m.run == self._run for m in r.manifests.values())]
        return prune(self._folder, own, self._keep)

    def _usable(self, stage: str, agreement_digest: str) -> Iterator[RoundFolder]:
        """Rounds with a manifest of the stage, of this run and these settings, oldest first."""
        for entry in self.rounds():
            manifest = entry.manifests.get(stage)
            if manifest is not None and (manifest.run, manifest.agreement_digest) == (
                self._run,
                agreement_digest,
            ):
                yield entry

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
