"""Checkpoint steps: who holds what under which mark, and the newest that all have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distqat.checkpoint.manifest import MARKS_KEPT
from distqat.checkpoint.round_index import RoundFolder


@dataclass(frozen=True)
class CheckpointMark:
    """One stage's part of a checkpoint step, and the committed round that it stands on."""

    mark: str
    stage: str
    generation: int
    round: int
    digest: str
    """State digest of the committed round."""
    step: int
    """Of the replica that wrote it."""
    expert: str
    path: Path
    """The folder of the stage in that round."""


class MarkLike(Protocol):
    """What a comparison of marks needs; a message from another host has it too."""

    @property
    def mark(self) -> str:
        """Name of the checkpoint step."""

    @property
    def generation(self) -> int:
        """That of the committed round below it."""

    @property
    def round(self) -> int:
        """The committed round that it stands on."""

    @property
    def step(self) -> int:
        """Inner steps of the replica that wrote it."""


def marks_of(rounds: Sequence[RoundFolder], stage: str) -> list[CheckpointMark]:
    """The marks of a stage, newest first: by round, within a round by when they were written.

    `rounds` are oldest first. A mark that several replicas wrote is there several times.
    """
    found = [
        CheckpointMark(
            part.mark, stage, m.generation, m.round, m.digest, part.step, part.expert, entry.path / stage
        )
        for entry in rounds
        if (m := entry.manifests.get(stage)) is not None
        for part in m.private
        if part.mark is not None
    ]
    return found[::-1]


def rounds_of_last_marks(rounds: Sequence[RoundFolder]) -> set[Path]:
    """The folders of the rounds that the last marks of each stage stand on."""
    folders: set[Path] = set()
    for stage in {stage for entry in rounds for stage in entry.manifests}:
        last: dict[str, Path] = {}
        for mark in marks_of(rounds, stage):
            last.setdefault(mark.mark, mark.path.parent)
        folders.update(list(last.values())[:MARKS_KEPT])
    return folders


def newest_common(offers: Mapping[str, Sequence[MarkLike]], parts: Sequence[str]) -> str | None:
    """The newest mark that every stage offers and whose trainer's part exists; None if there is none.

    `parts` are the marks of the trainers' parts, newest first. Later means later by (generation, round,
    step) at the stages; where that ties, earlier in `parts`.
    """
    if not offers:
        return None
    newest: str | None = None
    latest: list[tuple[int, int, int]] = []
    for mark in parts:
        places = [
            max((o.generation, o.round, o.step) for o in offered if o.mark == mark)
            for offered in offers.values()
            if any(o.mark == mark for o in offered)
        ]
        places.sort()  # a cut that is later at every stage stays the later one, and no stage comes first
        if len(places) == len(offers) and places > latest:
            newest, latest = mark, places
    return newest
