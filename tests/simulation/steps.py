"""Trainers and replicas in the world: inner steps over the real StepWindows, from request to commit."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.simulation.world import Node, World

from distqat.errors import SwarmError
from distqat.topology.attempts import StepId
from distqat.topology.windows import Action, Expire, Grant, Quiet, Refuse, Resolve, StepWindows

RETRY_S = 0.3
LEASE_S = 3.0
STEP_S = 0.2
PATIENCE_S = 4.0  # a trainer waits so long for an attempt before it aborts it


@dataclass(frozen=True)
class Bugs:
    apply_twice: bool = False  # a commit is applied whenever it comes
    work_outside: bool = False  # an attempt that lost the window is not undone


class Replica(Node):
    """One replica of a stage. Its weights, so what it applied, are lost in a crash: rolled back."""

    def __init__(self, world: World, name: str, stage: str, bugs: Bugs) -> None:
        super().__init__(world, name)
        self.stage, self.bugs = stage, bugs
        self.ledger: Counter[tuple[str, str]] = Counter()  # (outcome, trainer) over all lives
        self.news: list[tuple[str, int, int]] = []  # (trainer, life, step) that was applied, for the checks
        self.applied_by: Counter[str] = Counter()  # in this life
        self.begun: set[StepId] = set()
        self.touched = False  # since the last check

    def start(self) -> None:
        self.windows = StepWindows(lease_s=LEASE_S)
        self.applied: set[StepId] = set()
        self.applied_by = Counter()
        self.begun = set()
        self.routes: dict[StepId, tuple[str, ...]] = {}
        self.prepared: set[StepId] = set()
        self.every(0.25, lambda: self.act(self.windows.tick(self.world.now)))

    def crash(self) -> None:
        for trainer, count in self.applied_by.items():
            self.ledger["rolled_back", trainer] += count
        for id in self.begun:
            self.ledger["lost", id.trainer] += 1
        self.applied_by, self.begun = Counter(), set()
        super().crash()

    def receive(self, source: str, message: tuple[Any, ...]) -> None:
        self.touched = True
        try:
            super().receive(source, message)
        except SwarmError as error:  # as a channel does: the error is the answer
            if isinstance(message[1], StepId) and not source.startswith(self.stage):
                self.send(source, "refused", message[1], message[0], type(error).__name__)

    def on_open(self, source: str, id: StepId, route: tuple[str, ...]) -> None:
        self.routes[id] = route
        self.act(self.windows.request(id, self.world.now))

    def on_work(self, source: str, id: StepId) -> None:
        self.windows.touch(id, self.world.now)

    def on_prepare(self, source: str, id: StepId) -> None:
        self.windows.prepare(id, self.world.now)
        self.prepared.add(id)
        self.send(source, "prepared", id, self.name)

    def on_commit(self, source: str, id: StepId) -> None:
        if id in self.applied and not self.bugs.apply_twice:
            self.send(source, "committed", id, self.name)
            return
        actions = [] if id in self.applied else self.windows.commit(id, self.world.now)
        self.news.append((id.trainer, id.incarnation, id.step))
        self.applied.add(id)
        self.applied_by[id.trainer] += 1
        self.end(id)
        self.act(actions)
        self.send(source, "committed", id, self.name)

    def on_abort(self, source: str, id: StepId) -> None:
        actions = self.windows.abort(id, self.world.now)
        self.drop(id)
        self.act(actions)
        self.send(source, "aborted", id, self.name)

    def on_outcome(self, source: str, id: StepId) -> None:
        self.send(source, "outcome_is", id, id in self.applied)

    def on_outcome_is(self, source: str, id: StepId, committed: bool) -> None:
        if committed and id in self.prepared and self.windows.holder == id:
            self.on_commit(id.trainer, id)

    def on_gone(self, source: str) -> None:
        self.act(self.windows.gone(source, self.world.now))

    def act(self, actions: list[Action]) -> None:
        self.touched = True
        for action in actions:
            if isinstance(action, Grant):
                self.grant(action.id)
            elif isinstance(action, Expire):
                self.drop(action.id)
            elif isinstance(action, Refuse):
                self.send(action.id.trainer, "refused", action.id, "open", "StaleAttempt")
            elif isinstance(action, Resolve):
                self.resolve(action.id)
            else:
                assert isinstance(action, Quiet)

    def grant(self, id: StepId) -> None:
        if id not in self.begun:
            self.begun.add(id)
            self.ledger["sent", id.trainer] += 1
        self.send(id.trainer, "granted", id, self.name)

    def resolve(self, id: StepId) -> None:
        """Ask the others on the route; nobody has committed it by the next time: abort."""
        others = [name for name in self.routes[id] if name != self.name]
        for name in others:
            self.send(name, "outcome", id)
        self.after(2.0, lambda: self.give_up(id))

    def give_up(self, id: StepId) -> None:
        if self.windows.holder == id:
            actions = self.windows.abort(id, self.world.now)
            self.drop(id)
            self.act(actions)

    def drop(self, id: StepId) -> None:
        if self.bugs.work_outside:
            return
        if id in self.begun:
            self.ledger["aborted", id.trainer] += 1
        self.end(id)

    def end(self, id: StepId) -> None:
        self.begun.discard(id)
        self.prepared.discard(id)


class Trainer(Node):
    """Runs one step after the other over replicas that it draws; its incarnation is on disk."""

    def __init__(self, world: World, name: str, stages: list[list[str]]) -> None:
        super().__init__(world, name)
        self.stages = stages
        self.finished = 0  # steps that every live replica of their route has committed
        self.step = 0
        self.split = 0  # steps that one replica applied and another, alive all the time, resolved as aborted

    def start(self) -> None:
        if self.life > 1:
            for name in itertools.chain(*self.stages):
                self.send(name, "gone")
        self.attempt = -1
        self.next_attempt()
        self.every(RETRY_S, self.again)

    def next_attempt(self) -> None:
        self.attempt += 1
        self.route = tuple(self.world.rng.choice(replicas) for replicas in self.stages)
        self.id = StepId(self.name, self.life, self.step, self.attempt)
        self.granted: set[str] = set()
        self.prepared: set[str] = set()
        self.lives: dict[str, int] = {}  # of the replicas when they prepared, for the checks
        self.committed: set[str] = set()
        self.deciding = False  # the first commit was sent: never undone
        self.deadline = self.world.now + PATIENCE_S
        self.again()

    def again(self) -> None:
        """Windows in stage order, then prepare everywhere, then commit everywhere."""
        if self.deciding:
            for name in self.route:
                if name not in self.committed:
                    self.send(name, "commit", self.id)
            self.maybe_finish()
            return
        if self.world.now > self.deadline:
            self.abort()
            return
        for name in self.route:
            if name not in self.granted:
                self.send(name, "open", self.id, self.route)
                return
        for name in self.route:
            self.send(name, "prepare", self.id)

    def abort(self) -> None:
        for name in self.route:
            self.send(name, "abort", self.id)
        self.next_attempt()

    def on_granted(self, source: str, id: StepId, name: str) -> None:
        if id == self.id and name not in self.granted:
            self.granted.add(name)
            self.send(name, "work", id)
            whole = self.granted == set(self.route)
            self.after(STEP_S if whole else 0.0, self.again)

    def on_prepared(self, source: str, id: StepId, name: str) -> None:
        if id != self.id or self.deciding:
            return
        self.prepared.add(name)
        self.lives[name] = self.world.nodes[name].life
        if self.prepared == set(self.route):
            self.deciding = True
            self.again()

    def on_committed(self, source: str, id: StepId, name: str) -> None:
        if id == self.id and self.deciding:
            self.committed.add(name)
            self.maybe_finish()

    def on_refused(self, source: str, id: StepId, event: str, error: str) -> None:
        if id != self.id:
            return
        if not self.deciding:
            self.abort()
        elif event == "commit" and source not in self.committed:  # it knows nothing of it (any more)
            replica = self.world.nodes[source]
            self.split += replica.alive and replica.life == self.lives[source]
            self.committed.add(source)
            self.maybe_finish()

    def on_aborted(self, source: str, id: StepId, name: str) -> None:
        return

    def maybe_finish(self) -> None:
        gone = {name for name in self.route if not self.world.nodes[name].alive}
        if self.deciding and self.committed | gone >= set(self.route):
            self.finished += 1
            self.step += 1
            self.attempt = -1
            self.next_attempt()
