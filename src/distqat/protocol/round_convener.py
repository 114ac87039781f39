"""The outer rounds of one stage as its convener sees them: a pure state machine; the shell obeys.

TRANSITIONS is what it runs on.

A round waits, for a grace period, for members in step: those of the last opening, and whoever begins with
everybody else. Who is out of step (a joiner, or one that was waited for in vain) reports ready as soon as it
holds the committed state, takes part in the next opening with what it has done by then, and is in step from
there on; it neither delays nor hastens that opening. Who is in a round is frozen at its opening.

A commit needs equal results from more than half of them; the shell writes it to the commit log before anybody
hears of it. Everything else is discarded: members keep anchor, momentum and weights, and their next delta
spans both rounds. A member without the committed result is behind, and no member until it has joined again.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from distqat.protocol.convener_actions import (
    Action,
    CommitRound,
    ContributionOffer,
    DiscardRound,
    ExchangeContributions,
    OpenRound,
    TellBehind,
)
from distqat.protocol.round_grace import RoundGrace

Phase = Literal["gathering", "collecting", "voting"]
TRANSITIONS: dict[tuple[Phase, str], Phase] = {
    ("gathering", "open"): "collecting",  # all who are waited for are ready, or the grace period is over
    ("collecting", "exchange"): "voting",  # all contributed, or more than half did and the time is up
    ("collecting", "discard"): "gathering",  # the time is up, and not more than half contributed
    ("voting", "commit"): "gathering",  # more than half have the same result
    ("voting", "discard"): "gathering",  # all voted, or the time is up, and there is no such majority
}


@dataclass
class RoundConvener:
    """The rounds of one stage. Members are named by UID; times are monotonic seconds, handed in."""

    round: int  # last committed round
    digest: str
    grace: RoundGrace
    exchange_s: float  # bound of collecting, and again of voting
    settled_at: float = -math.inf  # no opening before: after a restart the members have to find us first
    members: set[str] = field(default_factory=set)
    phase: Phase = "gathering"
    attempt: int = 0
    _ready: dict[str, float] = field(default_factory=dict)
    _opened_at: float = 0.0
    _first_ready: float = 0.0  # in the open round
    _phase_began: float | None = None  # None: the first inner steps have not begun
    _began: bool = False  # whether any round has opened
    _in_step: set[str] = field(default_factory=set)  # whom an opening waits for
    _frozen: tuple[str, ...] = ()
    _gone: set[str] = field(default_factory=set)
    _offers: dict[str, ContributionOffer] = field(default_factory=dict)
    _votes: dict[str, str | None] = field(default_factory=dict)

    def joined(self, uid: str, now: float) -> list[Action]:
        """`uid` holds the committed state of `self.round` and takes part from the next opening on."""
        self.members.add(uid)
        together = not self._ready or now < self.settled_at
        if not self._began and together:  # everybody takes the first inner steps together
            self._in_step.add(uid)
        if self._phase_began is None:
            self._phase_began = now
        return self._advance(now)

    def left(self, uid: str, now: float) -> list[Action]:
        """`uid` died, withdrew or moved. In an open round its place stays counted for the quorum."""
        self.members.discard(uid)
        self._in_step.discard(uid)
        self._ready.pop(uid, None)
        if uid in self._frozen:
            self._gone.add(uid)
        return self._advance(now)

    def ready(self, uid: str, now: float) -> list[Action]:
        """`uid` has taken its inner steps since `self.round`. Repeating it changes nothing.

        While a round is open without it, it is ready for the next opening, should this one be discarded. Who
        has contributed and is ready again has dropped the open attempt, and leaves it.
        """
        self._check_member(uid, "ready")
        if self.takes_part(uid) and uid in self._offers:
            self._gone.add(uid)
        if uid not in self._ready and uid not in self._present():
            punctual = self._punctual()
            if punctual and self.phase == "gathering" and uid in self._in_step:
                self.grace.arrived(now - min(punctual))
            self._ready[uid] = now
        return self._advance(now)

    def contributed(
        self, uid: str, offer: ContributionOffer, now: float, *, attempt: int | None = None
    ) -> list[Action]:
        """`uid` has encoded its pseudo-gradient and serves it. One for another attempt is ignored."""
        if attempt is not None and attempt != self.attempt:
            return self._advance(now)
        self._check_frozen(uid, "collecting", "contribution")
        if uid not in self._gone:
            self._offers[uid] = offer
        return self._advance(now)

    def voted(self, uid: str, digest: str | None, now: float, *, attempt: int | None = None) -> list[Action]:
        """`uid` got the result `digest`, or none (it could not fetch or verify the set).

        One for another attempt is ignored: its set was another, and whoever had that result dropped it.
        """
        if attempt is not None and attempt != self.attempt:
            return self._advance(now)
        self._check_frozen(uid, "voting", "vote")
        if uid not in self._gone:
            self._votes[uid] = digest
        return self._advance(now)

    def tick(self, now: float) -> list[Action]:
        """What is due at `now` because time has passed."""
        return self._advance(now)

    def takes_part(self, uid: str) -> bool:
        """Whether `uid` is in the open attempt."""
        return self.phase != "gathering" and uid in self._present()

    def lacks(self, uid: str) -> bool:
        """Whether the open attempt still lacks the contribution of `uid`."""
        return self.takes_part(uid) and uid not in self._offers

    def awaits(self, uid: str) -> bool:
        """Whether the next opening waits for `uid`; a joiner, for whom it does not, is ready at once."""
        return uid in self._in_step

    @property
    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""
        if self.phase == "gathering":
            return max(self._grace_over(), self.settled_at) if self._punctual() else None
        return self._opened_at + self.exchange_s

    # what follows from the state

    def _advance(self, now: float) -> list[Action]:
        if self.phase == "gathering":
            return self._open_if_due(now)
        if self.phase == "collecting":
            return self._exchange_if_due(now)
        return self._end_if_due(now)

    def _punctual(self) -> list[float]:
        """When members in step became ready; while nobody is in step, everybody counts."""
        return [at for uid, at in self._ready.items() if uid in self._in_step or not self._in_step]

    def _grace_over(self) -> float:
        first = max(min(self._punctual()), self.settled_at)
        began = self._phase_began if self._phase_began is not None else first
        return first + self.grace.seconds(first - began)

    def _open_if_due(self, now: float) -> list[Action]:
        awaited = self._in_step - self._ready.keys()
        if not self._punctual() or now < self.settled_at or (awaited and now < self._grace_over()):
            return []
        self._enter("open")
        self._opened_at, self._began = now, True
        self._frozen, self._first_ready = tuple(sorted(self._ready)), min(self._ready.values())
        self._in_step = set(self._frozen)
        self._ready.clear()
        self._gone.clear()
        self._offers.clear()
        self._votes.clear()
        return [OpenRound(self.round + 1, self.attempt, self._frozen)]

    def _exchange_if_due(self, now: float) -> list[Action]:
        present = self._present()
        if not present <= self._offers.keys() and now < self._opened_at + self.exchange_s:
            return []
        offers = {uid: self._offers[uid] for uid in self._frozen if uid in self._offers and uid in present}
        if 2 * len(offers) <= len(self._frozen):
            return [self._discard(f"{len(offers)} of {len(self._frozen)} members contributed", now)]
        self._enter("exchange")
        self._opened_at = now
        self._offers = offers
        return [ExchangeContributions(self.round + 1, self.attempt, self._frozen, offers)]

    def _end_if_due(self, now: float) -> list[Action]:
        tally = Counter(digest for digest in self._votes.values() if digest is not None)
        digest, votes = tally.most_common(1)[0] if tally else ("", 0)
        if 2 * votes > len(self._frozen):
            return self._commit(digest, now)
        if not self._present() <= self._votes.keys() and now < self._opened_at + self.exchange_s:
            return []
        return [
            self._discard(
                f"no result has a majority: {votes} equal votes of {len(self._frozen)} members", now
            )
        ]

    def _commit(self, digest: str, now: float) -> list[Action]:
        commit = CommitRound(
            round=self.round + 1,
            digest=digest,
            members=self._frozen,
            contributors=tuple(self._offers),
            duration_s=now - self._first_ready,
            nbytes=sum(offer.nbytes for offer in self._offers.values()),
        )
        differs = {uid for uid, vote in self._votes.items() if vote != digest}
        behind = self.members - (self._present() - differs)
        self.members -= behind
        self._in_step -= behind
        self.round, self.digest, self.attempt = commit.round, digest, 0
        self._ready.clear()
        self._gather("commit", now)
        return [commit, TellBehind(commit.round, tuple(sorted(behind)))] if behind else [commit]

    def _discard(self, reason: str, now: float) -> DiscardRound:
        took = now - self._first_ready
        discard = DiscardRound(self.round + 1, self.attempt, self._frozen, reason, took)
        self.attempt += 1
        self._ready = dict.fromkeys(self._ready, now)
        self._gather("discard", now)
        return discard

    def _gather(self, event: str, now: float) -> None:
        self._enter(event)
        self._phase_began, self._frozen = now, ()

    def _enter(self, event: str) -> None:
        self.phase = TRANSITIONS[self.phase, event]

    def _present(self) -> set[str]:
        """Who is in the open round and did not leave."""
        return set(self._frozen) - self._gone

    def _check_member(self, uid: str, event: str) -> None:
        if uid not in self.members:
            raise RuntimeError(
                f"{event} of {uid}, which is not a member in round {self.round + 1} ({self.phase})"
            )

    def _check_frozen(self, uid: str, phase: Phase, event: str) -> None:
        if self.phase != phase or uid not in self._frozen:
            raise RuntimeError(
                f"{event} of {uid} in round {self.round + 1} while {self.phase} of {self._frozen}"
            )


__all__ = [
    "Action",
    "CommitRound",
    "ContributionOffer",
    "DiscardRound",
    "ExchangeContributions",
    "OpenRound",
    "Phase",
    "RoundConvener",
    "TellBehind",
]
