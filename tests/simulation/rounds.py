"""A stage in the world: members, and the client with convener and commit log; small models of the roles.

`Bugs` plants what the checks must find.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from tests.simulation.world import Node, World

from distqat.diloco.convener import Action, Behind, Commit, Convener, Discard, Exchange, Offer, Open
from distqat.diloco.grace import Grace

RETRY_S = 0.5
SILENCE_S = 4.0
LEASE_S = 6.0  # a member serves so long after the last answer of the client
EXCHANGE_S = 5.0
STEP_S = 0.3
INNER_STEPS = 5


@dataclass(frozen=True)
class Bugs:
    no_quorum: bool = False  # the first vote commits
    no_log: bool = False  # a commit is told and not written
    commit_twice: bool = False  # a repeated commit is applied again
    no_promise: bool = False  # what was voted for is lost in a crash


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class Client(Node):
    """Convener and log of one stage. The log is on disk; everything else is lost in a crash."""

    def __init__(self, world: World, name: str, bugs: Bugs) -> None:
        super().__init__(world, name)
        self.bugs = bugs
        self.log: dict[int, str] = {0: digest_of("round 0")}
        self.committed_at: dict[int, float] = {0: 0.0}
        self.commits: list[tuple[Commit, int]] = []  # with the attempt
        self.discards = 0

    def start(self) -> None:
        newest = max(self.log)
        self.convener = Convener(newest, self.log[newest], Grace(3.0), EXCHANGE_S)
        self.heard: dict[str, float] = {}
        self.told: dict[str, tuple[Any, ...]] = {}  # what each has to do in the open round
        self.every(0.2, self.tick)

    def tick(self) -> None:
        for name, heard in list(self.heard.items()):
            if self.world.now - heard > SILENCE_S:
                del self.heard[name]
                self.act(self.convener.left(name, self.world.now))
        self.act(self.convener.tick(self.world.now))

    def on_alive(self, source: str, life: int, sent_at: float, round: int) -> None:
        """A heartbeat: answered with the newest round and what the member has to do."""
        self.heard[source] = self.world.now
        newest = max(self.log)
        self.send(source, "news", life, sent_at, newest, self.log[newest], source in self.convener.members)

    def on_died(self, source: str) -> None:
        """Its stream ended."""
        self.heard.pop(source, None)
        self.act(self.convener.left(source, self.world.now))

    def on_joined(self, source: str, life: int, round: int) -> None:
        if round == self.convener.round and source not in self.convener.members:
            self.heard[source] = self.world.now
            self.act(self.convener.joined(source, self.world.now))

    def on_ready(self, source: str, life: int, round: int) -> None:
        convener = self.convener
        if round != convener.round or source not in convener.members:
            return  # the next heartbeat's answer tells it
        task = self.told.get(source)
        if task is not None and convener.phase != "gathering":
            self.send(source, *task)
        self.act(convener.ready(source, self.world.now))

    def on_contribute(self, source: str, life: int, round: int, attempt: int, offer: Offer) -> None:
        convener = self.convener
        if round != convener.round + 1 or convener.phase == "gathering" or source not in convener._frozen:
            self.send(source, "outcome", round, attempt, self.log.get(round))
        elif convener.phase == "collecting":
            self.act(convener.contributed(source, offer, self.world.now, attempt=attempt))
        elif source in self.told:
            self.send(source, *self.told[source])

    def on_vote(self, source: str, life: int, round: int, attempt: int, digest: str | None) -> None:
        convener = self.convener
        voting = round == convener.round + 1 and convener.phase == "voting" and source in convener._frozen
        if voting and attempt == convener.attempt:
            self.act(convener.voted(source, digest, self.world.now, attempt=attempt))
            if self.bugs.no_quorum and digest is not None and convener.phase == "voting":
                self.act(convener._commit(digest, self.world.now))
        else:
            self.send(source, "outcome", round, attempt, self.log.get(round))

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Open):
                self.tell(action.members, "open", action.round, action.attempt)
            elif isinstance(action, Exchange):
                self.tell(action.members, "set", action.round, action.attempt, dict(action.offers))
            elif isinstance(action, Commit):
                self.commits.append((action, self.open_attempt))
                if not self.bugs.no_log:
                    assert action.round == max(self.log) + 1, "the log takes the next round only"
                    self.log[action.round] = action.digest
                    self.committed_at[action.round] = self.world.now
                self.tell(action.members, "outcome", action.round, self.open_attempt, action.digest)
                self.told.clear()
            elif isinstance(action, Discard):
                self.discards += 1
                self.tell(action.members, "outcome", action.round, action.attempt, None)
                self.told.clear()
            elif isinstance(action, Behind):
                continue  # no member any more: the answer to its next heartbeat says so

    def tell(self, members: tuple[str, ...], *task: Any) -> None:
        self.open_attempt = task[2]
        for name in members:
            self.told[name] = task
            self.send(name, *task)


class Member(Node):
    """A replica: its committed state is on disk, as a snapshot; the rest is lost in a crash."""

    def __init__(self, world: World, name: str, peers: list[str], bugs: Bugs) -> None:
        super().__init__(world, name)
        self.bugs = bugs
        self.peers = peers
        self.round, self.digest = 0, digest_of("round 0")
        self.history: list[tuple[int, str]] = [(0, self.digest)]
        self.results: dict[tuple[int, int], str] = {}  # (round, attempt) -> what it computed, for the checks
        self.promised: tuple[int, str] | None = (
            None  # a vote is a promise to hold the result, also after a crash
        )

    def start(self) -> None:
        self.history.append((self.round, self.digest))
        self.steps = 0
        self.heard_at = -LEASE_S  # when the last answered heartbeat was sent
        self.stale = True  # until the client has said that it is a member
        self.attempt: tuple[int, int] | None = None  # the open one that it is in
        self.sent: dict[tuple[int, int], Offer] = {}
        self.fetched: dict[str, str] = {}
        self.offers: dict[str, Offer] | None = None
        self.result: str | None = None
        self.voted = False
        self.send("client", "died") if self.life > 1 else None
        self.every(RETRY_S, self.again)
        self.every(STEP_S * self.world.rng.choice([1.0, 1.0, 1.3, 4.0]), self.step)

    @property
    def serving(self) -> bool:
        """Takes inner steps: holds the committed state as far as it can know, and hears the client."""
        return self.alive and not self.stale and self.world.now - self.heard_at <= LEASE_S

    def step(self) -> None:
        if self.serving and self.attempt is None:
            self.steps += 1

    def again(self) -> None:
        """Say again whatever waits for an answer."""
        self.send("client", "alive", self.life, self.world.now, self.round)
        if self.attempt is None:
            if not self.stale and self.steps >= INNER_STEPS:
                self.send("client", "ready", self.life, self.round)
        elif self.offers is None:
            self.send("client", "contribute", self.life, *self.attempt, self.sent[self.attempt])
        elif self.voted:
            self.send("client", "vote", self.life, *self.attempt, self.result)
        else:
            self.fetch()

    def on_news(self, source: str, life: int, sent_at: float, newest: int, digest: str, member: bool) -> None:
        if life != self.life or sent_at < self.heard_at:
            return  # of an earlier life, or overtaken
        self.heard_at = sent_at
        if newest > self.round:
            if self.attempt is not None and self.attempt[0] == newest and self.result == digest:
                self.adopt(digest)  # it was in the round and holds its outcome
                return
            if self.promised == (newest, digest):
                self.adopt(digest, newest)
                self.stale = True
                self.send("client", "joined", self.life, self.round)
                return
            self.stale, self.attempt = True, None
            for peer in self.peers:
                self.send(peer, "snapshot", newest, digest)
        elif newest == self.round and not member:
            self.stale = True
            self.send("client", "joined", self.life, self.round)
        elif newest == self.round:
            self.stale = False

    def on_snapshot(self, source: str, round: int, digest: str) -> None:
        if (self.round, self.digest) == (round, digest):
            self.send(source, "donated", round, digest)

    def on_donated(self, source: str, round: int, digest: str) -> None:
        if round > self.round and self.stale:
            self.adopt(digest, round)
            self.stale = True
            self.send("client", "joined", self.life, self.round)

    def on_open(self, source: str, round: int, attempt: int) -> None:
        if self.stale or round != self.round + 1 or (self.attempt or (0, -1)) >= (round, attempt):
            return
        if self.sent.get((round, attempt)) is not None:
            return  # an opening that is over
        self.attempt, self.offers, self.result, self.voted = (round, attempt), None, None, False
        self.fetched = {}
        delta = digest_of(self.name, self.life, round, attempt, self.steps)
        self.sent[self.attempt] = Offer(delta, self.steps, 100)
        self.again()

    def on_set(self, source: str, round: int, attempt: int, offers: dict[str, Offer]) -> None:
        if self.attempt != (round, attempt) or self.offers is not None:
            return
        self.offers = offers
        self.after(EXCHANGE_S * 0.7, lambda: self.give_up((round, attempt)))
        self.fetch()

    def fetch(self) -> None:
        assert self.offers is not None and self.attempt is not None  # noqa: PT018
        for name in self.offers:
            if name == self.name:
                self.fetched[name] = self.sent[self.attempt].digest
            elif name not in self.fetched:
                self.send(name, "contribution", *self.attempt)
        self.compute_if_whole()

    def on_contribution(self, source: str, round: int, attempt: int) -> None:
        offer = self.sent.get((round, attempt))
        if offer is not None:
            self.send(source, "delta", round, attempt, offer.digest)

    def on_delta(self, source: str, round: int, attempt: int, digest: str) -> None:
        if self.attempt == (round, attempt) and self.offers is not None:
            self.fetched[source] = digest
            self.compute_if_whole()

    def compute_if_whole(self) -> None:
        assert self.offers is not None and self.attempt is not None  # noqa: PT018
        if self.voted or not self.offers.keys() <= self.fetched.keys():
            return
        if any(self.fetched[name] != offer.digest for name, offer in self.offers.items()):
            self.vote(None)
            return
        result = digest_of(self.digest, sorted(self.fetched.items()))
        if self.world.rng.random() < self.world.faults.wrong_result:
            result = digest_of("a flipped bit", self.name, self.attempt, self.world.now)
        self.vote(result)

    def give_up(self, attempt: tuple[int, int]) -> None:
        if self.attempt == attempt and not self.voted:
            self.vote(None)

    def vote(self, result: str | None) -> None:
        assert self.attempt is not None
        self.result, self.voted = result, True
        if result is not None:
            self.promised = None if self.bugs.no_promise else (self.attempt[0], result)
            self.results[self.attempt] = result
        self.again()

    def on_outcome(self, source: str, round: int, attempt: int, digest: str | None) -> None:
        if self.bugs.commit_twice and digest is not None and round == self.round:
            self.round, self.digest = round + 1, digest_of(self.digest, digest)
            self.history.append((self.round, self.digest))
        if self.attempt != (round, attempt):
            return
        if digest is None:
            self.attempt, self.steps = None, 0
        elif digest == self.result:
            self.adopt(digest)
        else:
            self.attempt, self.stale = None, True  # the next heartbeat's answer names what to fetch

    def adopt(self, digest: str, round: int | None = None) -> None:
        self.round, self.digest = round if round is not None else self.round + 1, digest
        self.history.append((self.round, self.digest))
        self.attempt, self.steps = None, 0
