"""The outer rounds of one stage as its convener sees them: a pure state machine; the shell obeys.

    gathering ── all ready, or grace over ──> collecting ── all sent, or time up ──> voting
        ^                                          |                                    |
        └────────── discard ───────────────────────┴──── discard, or quorum: commit ────┘

Who is in a round is frozen at its opening. A commit needs equal results from more than half of them; the
shell writes it to the commit log before anybody hears of it. Everything else is discarded: members keep
anchor, momentum and weights, and their next delta spans both rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from distqat.diloco.grace import Grace

Phase = Literal["gathering", "collecting", "voting"]


@dataclass(frozen=True)
class Offer:
    """What a member says of its encoded contribution; `samples` are those of its committed inner steps."""

    digest: str
    samples: int
    nbytes: int


@dataclass(frozen=True)
class Open:
    """Tell `members` that round `round`, attempt `attempt`, takes their pseudo-gradients now."""

    round: int
    attempt: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Exchange:
    """Tell `members` the set of contributions to fetch, in the order in which to add them."""

    round: int
    attempt: int
    members: tuple[str, ...]
    offers: Mapping[str, Offer]


@dataclass(frozen=True)
class Commit:
    """Log that round `round` ended with `digest`; then tell `members`. Who voted otherwise is stale."""

    round: int
    digest: str
    members: tuple[str, ...]
    contributors: tuple[str, ...]
    duration_s: float
    nbytes: int


@dataclass(frozen=True)
class Discard:
    """Tell `members` that this attempt at round `round` changed nothing."""

    round: int
    attempt: int
    members: tuple[str, ...]
    reason: str
    duration_s: float


Action = Open | Exchange | Commit | Discard


@dataclass
class Convener:
    """The rounds of one stage. Members are named by UID; times are monotonic seconds, handed in."""

    round: int  # last committed round
    digest: str
    grace: Grace
    exchange_s: float  # bound of collecting, and again of voting
    members: set[str] = field(default_factory=set)
    phase: Phase = "gathering"
    attempt: int = 0
    _ready: dict[str, float] = field(default_factory=dict)
    _opened_at: float = 0.0
    _phase_began: float | None = None  # None: the first inner steps have not begun
    _frozen: tuple[str, ...] = ()
    _gone: set[str] = field(default_factory=set)
    _offers: dict[str, Offer] = field(default_factory=dict)
    _votes: dict[str, str | None] = field(default_factory=dict)

    def joined(self, uid: str, now: float) -> list[Action]:
        """`uid` holds the committed state of `self.round` and takes part from the next opening on."""
        self.members.add(uid)
        if self._phase_began is None:
            self._phase_began = now
        return self._advance(now)

    def left(self, uid: str, now: float) -> list[Action]:
        """`uid` died, withdrew or moved. In an open round its place stays counted for the quorum."""
        self.members.discard(uid)
        self._ready.pop(uid, None)
        if uid in self._frozen:
            self._gone.add(uid)
        return self._advance(now)

    def ready(self, uid: str, now: float) -> list[Action]:
        """`uid` has taken its inner steps since `self.round`. Repeating it changes nothing."""
        self._check_member(uid, "ready")
        if self.phase == "gathering" and uid not in self._ready:
            if self._ready:
                self.grace.arrived(now - min(self._ready.values()))
            self._ready[uid] = now
        return self._advance(now)

    def contributed(self, uid: str, offer: Offer, now: float) -> list[Action]:
        """`uid` has encoded its pseudo-gradient and serves it."""
        self._check_frozen(uid, "collecting", "contribution")
        self._offers[uid] = offer
        return self._advance(now)

    def voted(self, uid: str, digest: str | None, now: float) -> list[Action]:
        """`uid` got the result `digest`, or none (it could not fetch or verify the set)."""
        self._check_frozen(uid, "voting", "vote")
        self._votes[uid] = digest
        return self._advance(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        return self._advance(now)

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        if self.phase == "gathering":
            return self._grace_over() if self._ready else None
        return self._opened_at + self.exchange_s

    # what follows from the state

    def _advance(self, now: float) -> list[Action]:
        if self.phase == "gathering":
            return self._open_if_due(now)
        if self.phase == "collecting":
            return self._exchange_if_due(now)
        return self._end_if_due(now)

    def _grace_over(self) -> float:
        first = min(self._ready.values())
        began = self._phase_began if self._phase_began is not None else first
        return first + self.grace.seconds(first - began)

    def _open_if_due(self, now: float) -> list[Action]:
        if not self._ready or (not self.members <= self._ready.keys() and now < self._grace_over()):
            return []
        self.phase, self._opened_at = "collecting", now
        self._frozen = tuple(sorted(self._ready))
        self._gone.clear()
        self._offers.clear()
        self._votes.clear()
        return [Open(self.round + 1, self.attempt, self._frozen)]

    def _exchange_if_due(self, now: float) -> list[Action]:
        expected = [uid for uid in self._frozen if uid not in self._gone and uid not in self._offers]
        if expected and now < self._opened_at + self.exchange_s:
            return []
        offers = {
            uid: self._offers[uid] for uid in self._frozen if uid in self._offers and uid not in self._gone
        }
        if 2 * len(offers) <= len(self._frozen):
            return [self._discard(f"{len(offers)} of {len(self._frozen)} members contributed", now)]
        self.phase, self._opened_at = "voting", now
        self._offers = offers
        return [Exchange(self.round + 1, self.attempt, self._frozen, offers)]

    def _end_if_due(self, now: float) -> list[Action]:
        tally = Counter(digest for digest in self._votes.values() if digest is not None)
        digest, votes = tally.most_common(1)[0] if tally else ("", 0)
        if 2 * votes > len(self._frozen):
            return [self._commit(digest, now)]
        open_votes = sum(uid not in self._votes and uid not in self._gone for uid in self._frozen)
        if open_votes and now < self._opened_at + self.exchange_s:
            return []
        return [
            self._discard(
                f"no result has a majority: {votes} equal votes of {len(self._frozen)} members", now
            )
        ]

    def _commit(self, digest: str, now: float) -> Commit:
        began = min(self._ready.values(), default=now)
        commit = Commit(
            round=self.round + 1,
            digest=digest,
            members=self._frozen,
            contributors=tuple(self._offers),
            duration_s=now - began,
            nbytes=sum(offer.nbytes for offer in self._offers.values()),
        )
        self.round, self.digest, self.attempt = commit.round, digest, 0
        self._gather(now)
        return commit

    def _discard(self, reason: str, now: float) -> Discard:
        discard = Discard(
            self.round + 1, self.attempt, self._frozen, reason, now - min(self._ready.values(), default=now)
        )
        self.attempt += 1
        self._gather(now)
        return discard

    def _gather(self, now: float) -> None:
        self.phase, self._phase_began = "gathering", now
        self._frozen = ()
        self._ready.clear()

    def _check_member(self, uid: str, event: str) -> None:
        if uid not in self.members:
            raise RuntimeError(
                f"{event} of {uid}, which is no member in round {self.round + 1} ({self.phase})"
            )

    def _check_frozen(self, uid: str, phase: Phase, event: str) -> None:
        if self.phase != phase or uid not in self._frozen:
            raise RuntimeError(
                f"{event} of {uid} in round {self.round + 1} while {self.phase} of {self._frozen}"
            )
