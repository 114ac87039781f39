"""Trainers and replicas in the world: inner steps over the real StepLock and Resolution."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from tests.simulation.world import Node, World

from distqat.errors import SwarmError
from distqat.protocol.prepared_outcome import PreparedOutcome
from distqat.protocol.step_attempts import StepId, Verdict
from distqat.protocol.step_lock import (
    Action,
    LockExpired,
    LockGrant,
    LockQuiet,
    LockRefused,
    ResolvePrepared,
    StepLock,
)

RETRY_S = 0.3
LEASE_S = 3.0
STEP_S = 0.2
APPLY_S = 0.05  # the optimizer
PATIENCE_S = 4.0  # a trainer waits so long for an attempt before it aborts it
DECIDE_S, ASK_S = 2.5, 2.5  # ... for the answer to its commit, and to its question for the outcome
HEARD_S, AGAIN_S = 2.5, 1.0  # a stage waits so long for answers of its route, and until it asks again
SILENCE_S = 6.0  # without a sign of its trainer a link counts as dead


class Replica(Node):
    """One replica of a stage. Its weights, so what it applied, are lost in a crash: rolled back."""

    def __init__(self, world: World, name: str, stage: str) -> None:
        super().__init__(world, name)
        self.stage = stage
        self.ledger: Counter[tuple[str, str]] = Counter()  # (outcome, trainer) over all lives
        self.applied_by: Counter[str] = Counter()  # in this life
        self.begun: set[StepId] = set()
        self.ended: list[tuple[StepId, str]] = []  # attempts and how they ended, for the checks

    def start(self) -> None:
        self.lock = self.make_lock()
        self.applied: set[StepId] = set()
        self.applied_by = Counter()
        self.begun = set()
        self.ended = []
        self.routes: dict[StepId, tuple[str, ...]] = {}
        self.rules: dict[StepId, PreparedOutcome] = {}
        self.answers: dict[StepId, dict[str, Verdict]] = {}  # of the question that is under way
        self.heard: dict[str, float] = {}  # trainers, and when last
        self.every(0.25, self.tick)

    def make_lock(self) -> StepLock:
        return StepLock(lease_s=LEASE_S)

    def tick(self) -> None:
        for trainer, heard in list(self.heard.items()):
            if self.clock - heard > SILENCE_S:
                del self.heard[trainer]
                self.on_gone(trainer)
        self.act(self.lock.tick(self.clock))

    def crash(self) -> None:
        for trainer, count in self.applied_by.items():
            self.ledger["rolled_back", trainer] += count
        for id in self.begun:
            self.ledger["lost", id.trainer] += 1
        self.applied_by, self.begun = Counter(), set()
        super().crash()

    def receive(self, source: str, message: tuple[Any, ...]) -> None:
        if source[0] == "T":
            self.heard[source] = self.clock
        try:
            super().receive(source, message)
        except SwarmError as error:  # as a channel does: the error is the answer
            if source[0] == "T":
                self.send(source, "refused", message[1], message[0], type(error).__name__)

    def on_open(self, source: str, id: StepId, route: tuple[str, ...]) -> None:
        self.routes[id] = route
        self.act(self.lock.request(id, self.clock))

    def on_work(self, source: str, id: StepId) -> None:
        self.lock.touch(id, self.clock)

    def on_prepare(self, source: str, id: StepId) -> None:
        self.lock.prepare(id, self.clock)
        self.send(source, "prepared", id, self.name)

    def on_decide(self, source: str, id: StepId, unconfirmed: bool) -> None:
        verdict = self.lock.verdict(id)
        if verdict == "undecided" and unconfirmed:
            self.rule_of(id).told = True  # answered when it asks again, or was asked before
            self.resolve(id)
            return
        self.decide(id)
        self.send(source, "decided", id, self.name)

    def on_commit(self, source: str, id: StepId) -> None:
        self.decide(id)
        if id in self.applied:
            self.send(source, "committed", id, self.name)

    def decide(self, id: StepId) -> None:
        if self.lock.verdict(id) == "committed":
            return
        self.lock.decide(id, self.clock)
        self.after(APPLY_S, lambda: self.apply(id))

    def apply(self, id: StepId) -> None:
        self.applied.add(id)
        self.applied_by[id.trainer] += 1
        self.end(id, "applied")
        self.act(self.lock.commit(id, self.clock))

    def on_abort(self, source: str, id: StepId) -> None:
        actions = self.lock.abort(id, self.clock)
        self.drop(id, "told to")
        self.act(actions)

    def verdict(self, id: StepId) -> Verdict:
        return self.lock.verdict(id)

    def on_outcome(self, source: str, id: StepId) -> None:
        self.send(source, "outcome_is", id, self.name, self.verdict(id))

    def on_outcome_is(self, source: str, id: StepId, name: str, verdict: Verdict) -> None:
        if id in self.answers:
            self.answers[id][name] = verdict

    def on_gone(self, trainer: str) -> None:
        self.act(self.lock.gone(trainer, self.clock))

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, LockGrant):
                self.grant(action.id)
            elif isinstance(action, LockExpired):
                self.drop(action.id, action.reason)
            elif isinstance(action, LockRefused):
                self.send(action.id.trainer, "refused", action.id, "open", "StaleAttempt")
            elif isinstance(action, ResolvePrepared):
                self.resolve(action.id)
            else:
                assert isinstance(action, LockQuiet)

    def grant(self, id: StepId) -> None:
        if id not in self.begun:
            self.begun.add(id)
            self.ledger["sent", id.trainer] += 1
        self.send(id.trainer, "granted", id, self.name)

    def rule_of(self, id: StepId) -> PreparedOutcome:
        return self.rules.setdefault(id, PreparedOutcome(self.routes[id].index(self.name)))

    def resolve(self, id: StepId) -> None:
        """The first stage aborts; the others ask their route, one question at a time."""
        if id in self.answers or self.lock.verdict(id) != "undecided":
            return
        self.answers[id] = {}
        if self.rule_of(id).position == 0:
            self.conclude(id)
            return
        self.ask(id)
        self.after(HEARD_S, lambda: self.conclude(id))

    def ask(self, id: StepId) -> None:
        """Until there is an answer of everybody who lives; a dead process refuses at once."""
        answers = self.answers.get(id)
        if answers is None:
            return
        nodes = self.world.nodes
        missing = [n for n in self.routes[id] if n != self.name and n not in answers and nodes[n].alive]
        for name in missing:
            self.send(name, "outcome", id)
        if missing:
            self.after(RETRY_S, lambda: self.ask(id))
        else:
            self.conclude(id)

    def conclude(self, id: StepId) -> None:
        answers = self.answers.pop(id, None)
        if answers is None or self.lock.verdict(id) != "undecided":
            return
        rule = self.rule_of(id)
        unheard = rule.unheard
        conclusion = rule.conclude([answers.get(name, "unknown") for name in self.routes[id]])
        self.world.say(f"{self.name} resolves {id} by {answers}: {conclusion}")
        if conclusion == "commit":
            if rule.told and "committed" not in answers.values():
                self.ended.append((id, "took over"))
            self.decide(id)
            self.send(id.trainer, "decided", id, self.name)
        elif conclusion == "abort":
            alone = rule.position > 0 and rule.unheard > unheard
            actions = self.lock.abort(id, self.clock)
            self.drop(id, "alone" if alone else "resolved")
            self.act(actions)
            self.send(id.trainer, "refused", id, "decide", "StaleAttempt")
        else:
            self.after(AGAIN_S, lambda: self.resolve(id))

    def drop(self, id: StepId, why: str) -> None:
        if id in self.begun:
            self.ledger["aborted", id.trainer] += 1
            self.ended.append((id, "alone" if why == "alone" else "aborted"))
            self.world.say(f"{self.name} drops {id}: {why}")
        self.end(id, "")

    def end(self, id: StepId, how: str) -> None:
        self.begun.discard(id)
        if how:
            self.ended.append((id, how))


class Trainer(Node):
    """Runs one step after the other over replicas that it draws; its incarnation is on disk."""

    def __init__(self, world: World, name: str, stages: list[list[str]]) -> None:
        super().__init__(world, name)
        self.stages = stages
        self.finished = 0  # steps that came through
        self.lost = 0  # of their commits
        self.refused = 0  # attempts that were aborted at the place of decision
        self.step = 0

    def start(self) -> None:
        if self.life > 1:  # its streams ended when it died
            for name in itertools.chain(*self.stages):
                self.send(name, "gone")
        self.attempt = -1
        self.next_attempt()
        self.every(RETRY_S, self.again)

    def next_attempt(self) -> None:
        self.attempt += 1
        self.route = tuple(self.world.rng.choice(replicas) for replicas in self.stages)
        self.id = self.make_id()
        self.granted: set[str] = set()
        self.lives: dict[str, int] = {}  # of the replicas: a stream ends with its process
        self.prepared: set[str] = set()
        self.committed: set[str] = set()
        self.gone: set[str] = set()  # that did not answer the commit
        self.phase = "working"
        self.place = 0  # of decision
        self.deadline = self.clock + PATIENCE_S
        self.again()

    def make_id(self) -> StepId:
        return StepId(self.name, self.life, self.step, self.attempt)

    def again(self) -> None:
        """Windows in stage order, prepare everywhere, decide at one place, then commit everywhere."""
        if self.phase == "working":
            self.again_working()
        elif self.phase == "committing":
            if self.clock > self.deadline:
                self.gone |= set(self.route) - self.committed
            for name in self.route:
                if name not in self.committed | self.gone:
                    self.say_to(name, "commit")
            self.maybe_finish()
        else:
            self.again_deciding()

    def again_working(self) -> None:
        if self.clock > self.deadline:
            self.abort()
            return
        for name in self.route:
            if name not in self.granted:
                self.send(name, "open", self.id, self.route)
                return
        for name in self.route:
            self.send(name, "prepare", self.id)

    def again_deciding(self) -> None:
        place = self.route[self.place]
        if not self.world.nodes[place].alive:  # its stream ended, and nobody takes another
            self.next_place()
        elif self.clock <= self.deadline:
            method = "decide" if self.phase == "deciding" else "outcome"
            self.send(place, method, self.id, *([self.place > 0] if method == "decide" else []))
        elif self.phase == "deciding":
            self.phase, self.deadline = "asking", self.clock + ASK_S
        else:
            self.next_place()

    def next_place(self) -> None:
        self.gone.add(self.route[self.place])
        self.place += 1
        if self.place < len(self.route):
            self.phase, self.deadline = "deciding", self.clock + 3 * DECIDE_S
            self.again()
        else:
            self.maybe_finish()

    def say_to(self, name: str, method: str) -> None:
        if self.world.nodes[name].alive:
            self.send(name, method, self.id)
        else:
            self.gone.add(name)

    def abort(self) -> None:
        for name in self.route:
            self.send(name, "abort", self.id)
        self.next_attempt()

    def on_granted(self, source: str, id: StepId, name: str) -> None:
        if id == self.id and name not in self.granted:
            self.granted.add(name)
            self.lives[name] = self.world.nodes[name].life
            self.send(name, "work", id)
            whole = self.granted == set(self.route)
            self.after(STEP_S if whole else 0.0, self.again)

    def on_prepared(self, source: str, id: StepId, name: str) -> None:
        if id != self.id or self.phase != "working":
            return
        self.prepared.add(name)
        if self.prepared == set(self.route):
            self.begin_commit()

    def begin_commit(self) -> None:
        self.phase, self.deadline = "deciding", self.clock + DECIDE_S
        self.again()

    def on_decided(self, source: str, id: StepId, name: str) -> None:
        if id == self.id and self.phase in ("deciding", "asking") and name == self.route[self.place]:
            self.phase, self.deadline = "committing", self.clock + DECIDE_S
            self.again()

    def on_outcome_is(self, source: str, id: StepId, name: str, verdict: Verdict) -> None:
        if id != self.id or self.phase != "asking" or name != self.route[self.place]:
            return
        if verdict == "committed":
            self.on_decided(source, id, name)
        elif verdict == "aborted":
            self.refused += 1
            self.abort()
        elif verdict == "undecided":
            self.phase, self.deadline = "deciding", self.clock + DECIDE_S
            self.again()
        else:
            self.next_place()

    def on_committed(self, source: str, id: StepId, name: str) -> None:
        if id == self.id and self.phase == "committing":
            self.committed.add(name)
            self.maybe_finish()

    def on_refused(self, source: str, id: StepId, event: str, error: str) -> None:
        if id != self.id:
            return
        if self.phase == "working" and event in ("open", "work", "prepare"):
            self.abort()
        elif event == "decide" and source == self.route[self.place] and self.phase in ("deciding", "asking"):
            if self.world.nodes[source].life == self.lives[source]:
                self.refused += 1
                self.abort()
            else:  # a stream ends with its process: what this one says comes over a new one
                self.next_place()
        elif event == "commit" and self.phase == "committing":
            self.gone.add(source)
            self.maybe_finish()

    def maybe_finish(self) -> None:
        if self.phase != "working" and self.committed | self.gone >= set(self.route):
            self.finished += 1
            self.lost += len(self.gone - self.committed)
            self.step += 1
            self.attempt = -1
            self.next_attempt()
