"""A model that is a chain of named blocks, and which of them a stage holds.

Without a `cut` the blocks are dealt out so that the largest stage is as small as it can be. `cut` names the
first block of every stage but the first (`[layer2.1, layer3.6]`), or their indices, and then holds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distqat.errors import ModelError, UnknownName
from distqat.models.balanced_cuts import balanced_cuts

StageName = Literal["full", "front", "back", "head", "body", "tail"]
STAGES: tuple[StageName, ...] = ("full", "front", "back", "head", "body", "tail")
FIRST, LAST = ("front", "head"), ("back", "tail")

Cut = Sequence["str | int"]


@dataclass(frozen=True)
class ChainPart:
    """Blocks [start, stop) of a chain."""

    start: int
    stop: int
    first: bool
    """It also holds what comes before the blocks."""
    last: bool
    """It also holds what comes behind them."""


@dataclass(frozen=True)
class BlockChain:
    """Blocks by name with what each costs, and what is always with the first and with the last of them."""

    names: Sequence[str]
    costs: Sequence[float]
    before: float = 0
    behind: float = 0

    def part(
        self,
        stage: StageName,
        cut: Cut | None = None,
        stage_index: int | None = None,
        stage_count: int | None = None,
    ) -> ChainPart:
        """The blocks of a stage: of `stage_count` it is number `stage_index`, from 0.

        Where they are not given, the stage's name and the cut tell: a front or a head is the first and a back
        or a tail the last, of two. Raises ModelError for a stage that cannot be told or cut so.
        """
        if stage == "full":
            if cut is not None:
                raise ModelError("a full stage is not cut; leave out cut, or name the stages front and back")
            return ChainPart(0, len(self.names), first=True, last=True)
        count = _count(stage, cut, stage_count)
        index = _index(stage, stage_index, count)
        cuts = self.cuts(count) if cut is None else self._given(cut)
        ends = [0, *cuts, len(self.names)]
        return ChainPart(ends[index], ends[index + 1], first=index == 0, last=index == count - 1)

    def cuts(self, count: int) -> list[int]:
        """Where `count` stages start, but the first: balanced."""
        return balanced_cuts(self.costs, count, self.before, self.behind)

    def _given(self, cut: Cut) -> list[int]:
        cuts = [self._place(entry) for entry in cut]
        if any(a >= b for a, b in zip([0, *cuts], [*cuts, len(self.names)], strict=True)):
            raise ModelError(
                f"cut: {list(cut)} does not name blocks in rising order, each the first of a stage but the "
                f"first stage; the blocks are {', '.join(self.names)}"
            )
        return cuts

    def _place(self, entry: str | int) -> int:
        if isinstance(entry, int):
            return entry
        if entry not in self.names:
            raise UnknownName("block in cut", entry, self.names)
        return list(self.names).index(entry)


def _count(stage: StageName, cut: Cut | None, stage_count: int | None) -> int:
    several = stage_count is not None and stage_count > 1
    if cut is not None:
        if isinstance(cut, str) or not cut:
            raise ModelError(f"cut: {cut!r} must be a list with the first block of every stage but the first")
        if several and stage_count != len(cut) + 1:
            raise ModelError(
                f"cut: {list(cut)} makes {len(cut) + 1} stages, the pipeline has {stage_count} of this model"
            )
        return len(cut) + 1
    if several:
        return int(stage_count or 0)
    if stage == "body":
        raise ModelError("a body is one of at least three stages; add head and tail to the pipeline")
    return 2


def _index(stage: StageName, stage_index: int | None, count: int) -> int:
    if stage in FIRST:
        expected = range(1)
    elif stage in LAST:
        expected = range(count - 1, count)
    else:
        expected = range(1, count - 1)
    if stage_index is None or count == 2:  # of two, the name tells, whatever else the pipeline holds
        stage_index = expected.start
    if stage_index not in expected:
        raise ModelError(
            f"a {stage} is not stage {stage_index + 1} of {count}: front or head come first, "
            "then body1, body2, ..., and back or tail last"
        )
    return stage_index
