"""What belongs to one replica alone, beside the shared state of a round: which parts there are, which stay.

A part may carry a mark: the name of a checkpoint step, under which every stage of a pipeline and its trainer
wrote what is theirs. Parts stand in the manifest in the order in which they were written, so the last one of
a replica is its newest even where a restored replica counts its steps from a lower number again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from distqat.errors import CheckpointError
from distqat.options import Options

MARKS_KEPT = 2  # per replica and round: the newest may be one that another stage did not live to write
_WORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LONGEST_MARK = 100


class PrivatePart(Options):
    """One file that only its replica needs."""

    expert: str
    file: str
    step: int
    mark: str | None = None


def check_words(words: Iterable[str]) -> None:
    """Raises CheckpointError for names that would leave the folder."""
    for word in words:
        if not _WORD.fullmatch(word):
            raise CheckpointError(f"{word!r} cannot be part of a file name")


def check_mark(mark: str) -> None:
    """Raises CheckpointError for what cannot name a checkpoint step."""
    check_words([mark])
    if len(mark) > _LONGEST_MARK:
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
