"""Two stages that hold copies of one weight: which committed copies the next rounds average.

A stage commits a round with the votes of its members, who tell the digest of their copy beside that of the
result; those who agree on the result that is committed must agree on the copy too. The convener then names
such a copy with the set of contributions of the other stage's rounds, the same one to all members of an
attempt. So what a member averages with is settled before it votes, and the vote is on what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KEPT = 2  # rounds; members keep one more


@dataclass(frozen=True)
class TiedCopy:
    """The copy that `stage` had after `round`; `digest` is that of its tensors."""

    stage: str
    round: int
    digest: str


@dataclass
class TiedWeightRounds:
    """`pair`: the two stages; None where no weight is kept tied between stages."""

    pair: tuple[str, str] | None = None
    _told: dict[tuple[str, int, str], set[str]] = field(default_factory=dict)
    _known: dict[str, list[TiedCopy]] = field(default_factory=dict)
    _offers: dict[str, tuple[tuple[int, int], TiedCopy | None]] = field(default_factory=dict)

    def told(self, stage: str, round: int, result: str, copy: str) -> None:
        """A member votes for `result` and says which copy is in it."""
        self._told.setdefault((stage, round, result), set()).add(copy)

    def committed(self, stage: str, round: int, result: str) -> None:
        """A round of `stage` is in the log; a copy that its voters do not agree on is not offered."""
        copies = self._told.get((stage, round, result), set())
        self._told = {key: told for key, told in self._told.items() if key[0] != stage}
        if len(copies) == 1:
            known = self._known.setdefault(stage, [])
            known.append(TiedCopy(stage, round, next(iter(copies))))
            del known[:-KEPT]

    def forget(self, stage: str) -> None:
        """The stage begins anew, maybe with an older state: nobody holds what was known of it."""
        self._known.pop(stage, None)
        self._told = {key: told for key, told in self._told.items() if key[0] != stage}

    def offer(self, stage: str, round: int, attempt: int) -> TiedCopy | None:
        """What all members of an attempt at `round` of `stage` average with; None: nothing.

        The other stage's copy of the round before, so that it does not depend on which of the two is faster;
        else the nearest; the first round goes without. So does every second attempt, in case nobody gives it.
        """
        if self.pair is None or stage not in self.pair:
            return None
        kept = self._offers.get(stage)
        if kept is None or kept[0] != (round, attempt):
            other = self.pair[1 - self.pair.index(stage)]
            known = self._known.get(other, []) if round > 1 and attempt % 2 == 0 else []
            nearest = min(known, key=lambda copy: (abs(round - 1 - copy.round), copy.round), default=None)
            kept = self._offers[stage] = (round, attempt), nearest
        return kept[1]
