"""The calls of a stage's members, and what each is answered at whatever moment it comes. Pure.

A call is answered at once, or later by an action of the convener (the reply is then None). Members repeat
calls after their link or the client broke, so ANSWERS has the right answer for each call at every moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from distqat.protocol.convener_actions import (
    Action,
    CommitRound,
    ContributionOffer,
    DiscardRound,
    ExchangeContributions,
    OpenRound,
)
from distqat.protocol.round_convener import RoundConvener


@dataclass(frozen=True)
class RoundCommitted:
    """The round ended with this digest."""

    committed: str


@dataclass(frozen=True)
class RoundDiscarded:
    """The attempt changed nothing, for this reason."""

    discarded: str


@dataclass(frozen=True)
class RoundMissed:
    """No member, or of another round: fetch the committed state, and join again."""

    behind: Literal[True] = True


Standing = Literal["stranger", "lacking", "member", "committed", "over", "left", "collecting", "voting"]
ANSWERS: dict[tuple[str, Standing], type | None] = {
    ("ready", "stranger"): RoundMissed,  # no member, or it has not the newest round
    ("ready", "lacking"): OpenRound,  # it did not hear of the opening
    ("ready", "member"): None,  # one that has contributed leaves that attempt, and is ready for the next
    ("contribute", "committed"): RoundCommitted,
    ("contribute", "over"): RoundDiscarded,  # another attempt is under way, or none
    ("contribute", "left"): RoundDiscarded,
    ("contribute", "collecting"): None,
    ("contribute", "voting"): ExchangeContributions,  # it is not in the set, but can fetch it and vote
    ("vote", "committed"): RoundCommitted,
    ("vote", "over"): RoundDiscarded,
    ("vote", "left"): RoundDiscarded,
    ("vote", "collecting"): RoundDiscarded,  # there is no set yet
    ("vote", "voting"): None,
}
"""What a call is answered with at once; None: the convener takes it, and answers by an action."""
WHY_DISCARDED: dict[Standing, str] = {
    "over": "this attempt is over",
    "left": "{} has left this attempt",
    "collecting": "there is no set to vote on yet",
}

Reply = OpenRound | ExchangeContributions | RoundCommitted | RoundDiscarded | RoundMissed | None


@dataclass
class RoundAnswers:
    """The members of one stage at the convener's table; `logged` looks a round up in the commit log."""

    convener: RoundConvener
    logged: Callable[[int], str | None]
    _opened: OpenRound | None = field(default=None, init=False)
    _exchange: ExchangeContributions | None = field(default=None, init=False)

    def joined(self, uid: str, round: int, now: float) -> tuple[Reply, list[Action]]:
        """`uid` holds the committed state of `round`; a member if that is the newest (no reply needed)."""
        if round != self.convener.round:
            return RoundMissed(), []
        return None, self._seen(self.convener.joined(uid, now))

    def left(self, uid: str, now: float) -> list[Action]:
        """A member is gone."""
        return self._seen(self.convener.left(uid, now))

    def tick(self, now: float) -> list[Action]:
        """What is due at `now`."""
        return self._seen(self.convener.tick(now))

    def ready(self, uid: str, round: int, now: float) -> tuple[Reply, list[Action]]:
        """Answered by the opening."""
        convener = self.convener
        known = round == convener.round and uid in convener.members
        standing: Standing = "stranger" if not known else "lacking" if convener.lacks(uid) else "member"
        if ANSWERS["ready", standing] is not None:
            return self._reply("ready", standing, uid, round), []
        return None, self._seen(convener.ready(uid, now))

    def contributed(
        self, uid: str, offer: ContributionOffer, round: int, attempt: int, now: float
    ) -> tuple[Reply, list[Action]]:
        """Answered by the set of contributions to fetch."""
        standing = self._standing(uid, round, attempt)
        if ANSWERS["contribute", standing] is not None:
            return self._reply("contribute", standing, uid, round), []
        return None, self._seen(self.convener.contributed(uid, offer, now, attempt=attempt))

    def voted(
        self, uid: str, digest: str | None, round: int, attempt: int, now: float
    ) -> tuple[Reply, list[Action]]:
        """Answered by the outcome."""
        standing = self._standing(uid, round, attempt)
        if ANSWERS["vote", standing] is not None:
            return self._reply("vote", standing, uid, round), []
        return None, self._seen(self.convener.voted(uid, digest, now, attempt=attempt))

    def _standing(self, uid: str, round: int, attempt: int) -> Standing:
        """Where an attempt is, for `uid`."""
        if self.logged(round) is not None:
            return "committed"
        if (round, attempt) != (self.convener.round + 1, self.convener.attempt):
            return "over"
        if not self.convener.takes_part(uid):
            return "left"
        return "voting" if self.convener.phase == "voting" else "collecting"

    def _reply(self, call: str, standing: Standing, uid: str, round: int) -> Reply:
        kind = ANSWERS[call, standing]
        if kind is OpenRound:
            return self._opened
        if kind is ExchangeContributions:
            return self._exchange
        if kind is RoundCommitted:
            return RoundCommitted(self.logged(round) or "")
        return RoundMissed() if kind is RoundMissed else RoundDiscarded(WHY_DISCARDED[standing].format(uid))

    def _seen(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, OpenRound):
                self._opened = action
            elif isinstance(action, ExchangeContributions):
                self._exchange = action
            elif isinstance(action, CommitRound | DiscardRound):
                self._opened = self._exchange = None
        return actions
