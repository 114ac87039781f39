"""The client of a stage and its servers: real log, slots and assembly; the servers' shells as models."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.simulation.calls import Caller, Reply
from tests.simulation.world import World

from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.slot_grants import SlotGrants
from distqat.protocol.hop import Hop, PeerAddress
from distqat.protocol.round_answers import RoundAnswers, RoundCommitted, RoundDiscarded, RoundMissed
from distqat.protocol.round_convener import (
    Action,
    CommitRound,
    ContributionOffer,
    DiscardRound,
    ExchangeContributions,
    OpenRound,
    RoundConvener,
    TellBehind,
)
from distqat.protocol.round_grace import RoundGrace
from distqat.topology.snapshot import SwarmSnapshot

STAGE = "back"
SILENCE_S = 6.0  # of a server, until the client gives its slot away
LEASE_S = 2.5  # a server serves so long after it asked what the client answered
REJOIN_S = 3.0  # after a restart of the client
LOST_S = 4.0
EXCHANGE_S = 4.0
STEP_S = 0.3
BEAT_S = 0.5
INNER_STEPS = 4
NOBODY = "no such round"


def digest_of(*parts: Any) -> str:
    return hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()[:12]


START = digest_of("anchor of round 0"), digest_of("momentum of round 0")


class Client(Caller):
    """Convener, slots and log of one stage. The log is on disk; everything else is lost in a crash."""

    def __init__(self, world: World, name: str, path: Path) -> None:
        super().__init__(world, name)
        self.path = path
        self.log = CommitLog(path, "simulated")
        self.log.commit_round(STAGE, 0, digest_of(*START))
        self.commits: list[tuple[int, CommitRound, int]] = []  # generation, commit, attempt
        self.known: dict[tuple[int, int], str] = {(self.log.generation, 0): digest_of(*START)}
        self.ended_at: dict[tuple[int, int], float] = {(self.log.generation, 0): 0.0}  # when a later one came
        self.discards = self.restarts = 0

    def start(self) -> None:
        super().start()
        if self.life > 1:
            self.log.close()
            if self.world.rng.random() < 0.3:
                with self.path.open("a") as file:
                    file.write('{"kind": "round", "gen')  # the write that it died in
            self.log = CommitLog(self.path, "simulated")
        self.slots = SlotGrants(self.log, (STAGE,), 16)
        self.began = self.clock
        self.heard: dict[str, float] = {}
        self.members: dict[str, str] = {}  # uid -> who
        self.waiting: dict[str, tuple[str, Reply]] = {}
        self.nobody_since = self.clock
        self.begin(settled_at=self.clock + REJOIN_S)
        self.every(0.2, self.tick)

    @property
    def newest(self) -> tuple[int, int, str]:
        round, digest = self.log.newest_round(STAGE) or (-1, NOBODY)
        return self.log.generation, round, digest

    def begin(self, settled_at: float) -> None:
        _, round, digest = self.newest
        convener = RoundConvener(round, digest, RoundGrace(3.0), EXCHANGE_S, settled_at)
        self.assembly = self.make_assembly(convener)

    def make_assembly(self, convener: RoundConvener) -> RoundAnswers:
        return RoundAnswers(convener, lambda round: self.log.digest(STAGE, round))

    def tick(self) -> None:
        for name, heard in list(self.heard.items()):
            if self.clock - heard > SILENCE_S:
                self.lose(name)
        if self.members:
            self.nobody_since = self.clock
        self.act(self.assembly.tick(self.clock))

    def lose(self, name: str) -> None:
        self.heard.pop(name, None)
        holder = self.slots.free(name)
        if holder is not None:
            uid = holder.grant.uid
            self.members.pop(uid, None)
            self.tell((uid,), RoundMissed())
            self.act(self.assembly.left(uid, self.clock))

    def on_died(self, source: str) -> None:
        """Its streams ended."""
        self.lose(source)

    def uid_of(self, source: str) -> str | None:
        self.heard[source] = self.clock
        holder = self.slots.of_peer(source)
        return holder.grant.uid if holder else None

    # what a server calls

    def serve_slot(self, source: str, reply: Reply, holding: str | None) -> None:
        settled = self.began + REJOIN_S
        if holding is None and self.clock < settled and self.life > 1:  # those who hold one come first
            self.after(settled - self.clock, lambda: self.serve_slot(source, reply, None))
            return
        self.lose(source)
        self.heard[source] = self.clock
        reply(self.grant(source, holding))

    def grant(self, source: str, holding: str | None) -> tuple[str, int]:
        hop = Hop("any.0.0.0", PeerAddress(source))
        grant = self.slots.grant(source, hop, SwarmSnapshot((STAGE,)), holding).grant
        return grant.uid, grant.epoch

    def serve_beat(self, source: str, reply: Reply, uid: str | None) -> None:
        known = uid is not None and self.uid_of(source) == uid
        reply((known, known and uid in self.members, *self.newest))

    def serve_members(self, source: str, reply: Reply) -> None:
        """The newest round and who holds it; nobody for long: whoever asks is to bring the stage back."""
        donors = [name for name in self.members.values() if name != source]
        lost = not self.members and self.clock - self.nobody_since > LOST_S
        reply((*self.newest, donors, lost and self.uid_of(source) is not None))

    def serve_restart(self, source: str, reply: Reply, round: int, digest: str) -> None:
        if self.members or self.uid_of(source) is None:
            reply(None)
            return
        self.restarts += 1
        generation = self.log.restart_stage(STAGE, round, digest, self.log.generation + 1)
        self.note(generation, round, digest)
        self.begin(settled_at=self.clock)
        self.nobody_since = self.clock
        reply(generation)

    def serve_joined(self, source: str, reply: Reply, generation: int, round: int) -> None:
        reply(generation == self.log.generation and self.join(source, round))

    def join(self, source: str, round: int) -> bool:
        uid = self.uid_of(source)
        if uid is None:
            return False
        answer, actions = self.assembly.joined(uid, round, self.clock)
        if answer is None:
            self.members[uid] = source
        self.act(actions)
        return answer is None

    def serve_ready(self, source: str, reply: Reply, round: int) -> None:
        uid = self.uid_of(source)
        self.answer(uid, "ready", reply, lambda: self.assembly.ready(uid or "", round, self.clock))

    def serve_contribute(
        self, source: str, reply: Reply, round: int, attempt: int, offer: ContributionOffer
    ) -> None:
        uid = self.uid_of(source)
        call = lambda: self.assembly.contributed(uid or "", offer, round, attempt, self.clock)  # noqa: E731
        self.answer(uid, "contribute", reply, call)

    def serve_vote(self, source: str, reply: Reply, round: int, attempt: int, digest: str | None) -> None:
        uid = self.uid_of(source)
        call = lambda: self.assembly.voted(uid or "", digest, round, attempt, self.clock)  # noqa: E731
        self.answer(uid, "vote", reply, call)

    def answer(self, uid: str | None, method: str, reply: Reply, call: Any) -> None:
        if uid is None:
            reply(RoundMissed())
            return
        answer, actions = call()
        if answer is not None:
            reply(self.dressed(answer))
            return
        self.waiting[uid] = method, reply
        self.act(actions)

    # what the assembly wants

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, OpenRound):
                self.attempt = action.attempt
                self.tell(action.members, action, "ready")
            elif isinstance(action, ExchangeContributions):
                self.tell(action.members, self.dressed(action), "contribute")
            elif isinstance(action, CommitRound):
                self.commit(action)
            elif isinstance(action, TellBehind):
                for uid in action.members:
                    self.members.pop(uid, None)
                self.tell(action.members, RoundMissed())
            elif isinstance(action, DiscardRound):
                self.discards += 1
                self.tell(action.members, RoundDiscarded(action.reason), "contribute", "vote")

    def dressed(self, answer: Any) -> Any:
        """A set of contributions with the addresses of those who have them."""
        if not isinstance(answer, ExchangeContributions):
            return answer
        return {u: (self.members[u], offer) for u, offer in answer.offers.items() if u in self.members}

    def commit(self, action: CommitRound) -> None:
        self.record(action)
        self.tell(action.members, RoundCommitted(action.digest), "contribute", "vote")

    def record(self, action: CommitRound) -> None:
        """Into the log: only then may anybody hear of it."""
        self.log.commit_round(STAGE, action.round, action.digest)
        self.commits.append((self.log.generation, action, self.attempt))
        self.note(self.log.generation, action.round, action.digest)

    def note(self, generation: int, round: int, digest: str) -> None:
        for key in self.known:
            self.ended_at.setdefault(key, self.world.now)
        self.known.setdefault((generation, round), digest)

    def tell(self, members: tuple[str, ...], answer: Any, *methods: str) -> None:
        for uid in members:
            method, reply = self.waiting.get(uid, ("", None))
            if reply is not None and (not methods or method in methods):
                del self.waiting[uid]
                reply(answer)


class Server(Caller):
    """A replica: its committed state and its slot are on disk, unless the disk is lost as well."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.generation, self.round = 0, -1
        self.anchor, self.momentum = "", ""
        self.holding: str | None = None
        self.results: dict[tuple[int, int, int], str] = {}  # (generation, round, attempt): for the checks

    def crash(self) -> None:
        super().crash()
        if self.world.rng.random() < 0.25:  # another machine takes its place
            self.generation, self.round, self.holding = 0, -1, None

    def start(self) -> None:
        super().start()
        self.uid: str | None = None
        self.epoch = 0
        self.heard_at = -1e9
        self.member = False
        self.missed = 0, 0  # the newest round that the client told of
        self.steps = self.samples = 0
        self.attempt: tuple[int, int] | None = None
        self.offer = ContributionOffer("", 0, 0)
        self.set: dict[str, ContributionOffer] | None = None
        self.fetched: dict[str, str] = {}
        self.result: tuple[str, str] | None = None
        self.voted = False
        if self.life > 1:
            self.send("client", "died")
        self.every(BEAT_S, self.beat)
        self.every(STEP_S * self.world.rng.choice([1.0, 1.0, 1.3, 3.0]), self.step)

    @property
    def digest(self) -> str:
        return digest_of(self.anchor, self.momentum)

    @property
    def serving(self) -> bool:
        """Takes inner steps: a member as far as it can know, outside a round, and the client answers."""
        if not (self.alive and self.member and self.attempt is None):
            return False
        return self.clock - self.heard_at <= LEASE_S

    @property
    def behind(self) -> bool:
        return (self.generation, self.round) < self.missed

    def step(self) -> None:
        if not self.serving:
            return
        self.steps += 1
        self.samples += 1
        if self.steps >= INNER_STEPS and not self.calls("client", "ready"):
            self.call("client", "ready", self.round, then=self.opened)

    def beat(self) -> None:
        asked = self.clock
        self.call("client", "beat", self.uid, then=lambda answer: self.news(asked, *answer))

    def news(self, asked: float, known: bool, member: bool, generation: int, round: int, digest: str) -> None:
        self.heard_at = max(self.heard_at, asked)
        if not known:
            self.lose_membership()
            self.uid = None
            if not self.calls("client", "slot"):
                self.call("client", "slot", self.holding, then=self.granted)
        elif (generation, round) > (self.generation, self.round):
            self.missed = generation, round  # to be had as soon as its own round has ended for it
            if self.attempt is None:
                self.lose_membership()
                self.resync()
        elif not (member and self.member) and self.attempt is None:
            self.resync()

    def granted(self, slot: tuple[str, int]) -> None:
        self.uid, self.epoch = slot
        self.holding = self.uid
        self.resync()

    def lose_membership(self) -> None:
        self.member = False
        self.drop_calls("members", "joined", "snapshot", "restart")  # of before: their links have ended
        self.drop_attempt()

    def drop_attempt(self) -> None:
        self.attempt, self.set, self.result, self.voted = None, None, None, False
        self.drop_calls("ready", "contribute", "vote", "contribution")

    # the committed state

    def resync(self) -> None:
        if not self.calls("client", "members") and not self.calls("client", "joined"):
            self.call("client", "members", then=lambda answer: self.compare(*answer))

    def compare(self, generation: int, round: int, digest: str, donors: list[str], lost: bool) -> None:
        if (self.generation, self.round) == (generation, round):
            self.join()
        elif donors:
            donor = self.world.rng.choice(donors)
            self.call(donor, "snapshot", generation, round, then=self.fetch)
        elif lost:
            if self.round < 0:
                self.anchor, self.momentum, self.round = *START, 0
            self.call("client", "restart", self.round, self.digest, then=self.restarted)

    def restarted(self, generation: int | None) -> None:
        if generation is not None:
            self.generation = generation
            self.join()

    def serve_snapshot(self, source: str, reply: Reply, generation: int, round: int) -> None:
        same = (self.generation, self.round) == (generation, round)
        reply((generation, round, self.anchor, self.momentum) if same else None)

    def fetch(self, snapshot: tuple[int, int, str, str] | None) -> None:
        if snapshot is not None and snapshot[:2] > (self.generation, self.round) and self.attempt is None:
            self.take(*snapshot)
            self.join()

    def take(self, generation: int, round: int, anchor: str, momentum: str) -> None:
        self.generation, self.round, self.anchor, self.momentum = generation, round, anchor, momentum

    def join(self) -> None:
        held = self.generation, self.round

        def joined(welcome: bool) -> None:
            if held == (self.generation, self.round):
                self.member = welcome

        self.call("client", "joined", *held, then=joined)

    # a round

    def opened(self, answer: Any) -> None:
        if not isinstance(answer, OpenRound) or answer.round != self.round + 1:
            self.lose_membership()
            self.resync()
            return
        self.drop_attempt()
        self.attempt = answer.round, answer.attempt
        self.offer = ContributionOffer(
            digest_of(self.name, self.life, self.attempt, self.samples), self.samples, 100
        )
        self.call("client", "contribute", *self.attempt, self.offer, then=self.exchange)

    def exchange(self, answer: Any) -> None:
        if not isinstance(answer, dict):
            self.outcome(answer)
            return
        assert self.attempt is not None
        self.set, self.fetched = {uid: offer for uid, (_, offer) in answer.items()}, {}
        attempt = self.attempt
        self.after(EXCHANGE_S * 0.7, lambda: self.give_up(attempt))
        for uid, (name, _) in answer.items():
            if uid == self.uid:
                self.fetched[uid] = self.offer.digest
            else:
                self.call(name, "contribution", *attempt, then=lambda got, uid=uid: self.got(uid, got))  # type: ignore[misc]
        self.compute_if_whole()

    def serve_contribution(self, source: str, reply: Reply, round: int, attempt: int) -> None:
        reply(self.offer.digest if self.attempt == (round, attempt) else "")

    def got(self, uid: str, digest: str) -> None:
        self.fetched[uid] = digest
        self.compute_if_whole()

    def compute_if_whole(self) -> None:
        if self.set is None or self.voted or not self.set.keys() <= self.fetched.keys():
            return
        if any(self.fetched[uid] != offer.digest for uid, offer in self.set.items()):
            self.vote(None)
            return
        result = self.next_state(sorted(self.fetched.items()))
        if self.world.rng.random() < self.world.faults.wrong_result:
            self.world.felt["wrong results"] += 1
            result = digest_of("a flipped bit", self.name, self.world.now), result[1]
        self.vote(result)

    def next_state(self, deltas: list[tuple[str, str]]) -> tuple[str, str]:
        return digest_of(self.anchor, self.momentum, deltas), digest_of("m", self.momentum, deltas)

    def give_up(self, attempt: tuple[int, int]) -> None:
        if self.attempt == attempt and self.set is not None and not self.voted:
            self.vote(None)

    def vote(self, result: tuple[str, str] | None) -> None:
        assert self.attempt is not None
        self.result, self.voted = result, True
        digest = digest_of(*result) if result else None
        if digest is not None:
            self.results[(self.generation, *self.attempt)] = digest
        self.call("client", "vote", *self.attempt, digest, then=self.outcome)

    def outcome(self, answer: Any) -> None:
        attempt, result = self.attempt, self.result
        self.drop_attempt()
        if isinstance(answer, RoundDiscarded) and not self.behind:
            self.discarded()
            return
        held = digest_of(*result) if result is not None else None
        if isinstance(answer, RoundCommitted) and answer.committed == held and result is not None and attempt:
            self.take(self.generation, attempt[0], *result)
            self.steps = self.samples = 0
            if not self.behind:
                return
        self.lose_membership()
        self.resync()

    def discarded(self) -> None:
        self.steps = 0  # the next delta spans both
