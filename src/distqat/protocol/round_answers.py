"""The calls of a stage's members, and what each is answered at whatever moment it comes. Pure.

A call is answered at once, or later by an action of the convener (the reply is then None). Members repeat
calls after their link or the client broke, so each call must have its right answer in every phase:

- `ready` of a member that did not hear of the opening: the opening. Of one that has contributed already: it
  has dropped that attempt, so it leaves it and is ready for the next.
- `contribute` when the set is made: the set; it is not in it, but can fetch it, vote and hold the result.
- `contribute` and `vote` after a commit: the digest; after a discard: that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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

    digest: str


@dataclass(frozen=True)
class RoundDiscarded:
    """The attempt changed nothing."""

    reason: str


@dataclass(frozen=True)
class RoundMissed:
    """No member, or of another round: fetch the committed state, and join again."""


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
        return self._seen(self.convener.left(uid, now))

    def tick(self, now: float) -> list[Action]:
        return self._seen(self.convener.tick(now))

    def ready(self, uid: str, round: int, now: float) -> tuple[Reply, list[Action]]:
        """Answered by the opening."""
        convener = self.convener
        if round != convener.round or uid not in convener.members:
            return RoundMissed(), []
        if convener.lacks(uid):
            return self._opened, []
        return None, self._seen(convener.ready(uid, now))

    def contributed(
        self, uid: str, offer: ContributionOffer, round: int, attempt: int, now: float
    ) -> tuple[Reply, list[Action]]:
        """Answered by the set of contributions to fetch."""
        over = self._over(uid, round, attempt)
        if over is not None:
            return over, []
        if self.convener.phase == "voting":
            return self._exchange, []
        return None, self._seen(self.convener.contributed(uid, offer, now, attempt=attempt))

    def voted(
        self, uid: str, digest: str | None, round: int, attempt: int, now: float
    ) -> tuple[Reply, list[Action]]:
        """Answered by the outcome."""
        over = self._over(uid, round, attempt)
        if over is not None or self.convener.phase != "voting":
            return over or RoundDiscarded("there is no set to vote on yet"), []
        return None, self._seen(self.convener.voted(uid, digest, now, attempt=attempt))

    def _over(self, uid: str, round: int, attempt: int) -> Reply:
        """What became of an attempt that is not open any more, or not for `uid`."""
        digest = self.logged(round)
        if digest is not None:
            return RoundCommitted(digest)
        if (round, attempt) != (self.convener.round + 1, self.convener.attempt):
            return RoundDiscarded("this attempt is over")
        if not self.convener.takes_part(uid):
            return RoundDiscarded(f"{uid} has left this attempt")
        return None

    def _seen(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, OpenRound):
                self._opened = action
            elif isinstance(action, ExchangeContributions):
                self._exchange = action
            elif isinstance(action, CommitRound | DiscardRound):
                self._opened = self._exchange = None
        return actions
