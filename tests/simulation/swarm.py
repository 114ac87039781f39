"""Inner steps under one seed: some trainers over two or three stages, and what must hold after every event.

I2: each step is applied once at most at each stage, and the ledger of every replica adds up. Nothing is
split: no attempt is applied at one replica and undone at another, both alive all the time. Where a stage
was cut off for so long that it decided on its own, or that the trainer went on without the place of
decision, the step counts as lost there (`alone`); with short cuts in a network that delivers that must not
happen either.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping

from tests.simulation.steps import Replica, Trainer
from tests.simulation.world import Faults, Node, Violation, World

from distqat.protocol.step_attempts import StepId

FAULTY_S, BACK_S, QUIET_S = 14.0, 9.0, 7.0
Trace = Callable[[str], None] | None


class Swarm:
    """One run; `roles` may put a faulty Replica or Trainer in place of the right one."""

    def __init__(self, seed: int, trace: Trace = None, roles: Mapping[str, type] | None = None) -> None:
        rng = random.Random(f"steps {seed}")
        roles = roles or {}
        self.seed = seed
        self.world = World(seed, Faults.drawn(rng), trace)
        stages = [[f"{stage}{n}" for n in range(rng.randint(1, 3))] for stage in "abc"[: rng.randint(2, 3)]]
        replica, trainer = roles.get("replica", Replica), roles.get("trainer", Trainer)
        self.replicas: list[Replica] = [replica(self.world, n, n[0]) for names in stages for n in names]
        self.trainers: list[Trainer] = [
            trainer(self.world, f"T{n}", stages) for n in range(rng.randint(1, 3))
        ]
        faults = self.world.faults
        self.gentle = faults.cut_s <= 2.0 and faults.loss <= 0.02 and faults.delay_s <= 0.05
        self.link_breaks = rng.choice([0.0, 0.2])
        self.applied: Counter[tuple[str, str, int, int]] = Counter()  # (stage, trainer, life, step)
        self.ends: dict[StepId, dict[tuple[str, int], str]] = {}  # who (name, life) ended it, and how
        self.alone: set[StepId] = set()
        self._taken = dict.fromkeys((r.name for r in self.replicas), (0, 0))  # life, ends seen

    def run(self) -> Counter[str]:
        """The whole run; what happened in it. Raises Violation."""
        world = self.world
        for node in world.nodes.values():
            node.boot()
        world.misbehave(list(world.nodes))
        world.at(0.5, self.break_a_link)
        world.run(FAULTY_S, self.check)
        world.calm()
        world.run(FAULTY_S + BACK_S, self.check)  # the dead have come back
        before = [trainer.finished for trainer in self.trainers]
        world.run(FAULTY_S + BACK_S + QUIET_S, self.check)
        for trainer, earlier in zip(self.trainers, before, strict=True):
            self.require(trainer.finished > earlier, f"{trainer.name} goes on when the faults are over")
        return self.summary()

    def summary(self) -> Counter[str]:
        said: Counter[str] = Counter(events=self.world.events, faults=sum(self.world.felt.values()))
        for trainer in self.trainers:
            said.update(steps=trainer.finished, lost=trainer.lost, refused=trainer.refused)
        said["applied"] = self.applied.total()
        said["aborted"] = sum(
            n for r in self.replicas for (how, _), n in r.ledger.items() if how == "aborted"
        )
        said["alone"] = len(self.alone)
        return said

    def break_a_link(self) -> None:
        """A stream between two that live ends; the replica notices."""
        rng, world = self.world.rng, self.world
        if rng.random() < self.link_breaks and world.now < FAULTY_S:
            replica, trainer = rng.choice(self.replicas), rng.choice(self.trainers)
            if replica.alive:
                world.felt["broken links"] += 1
                world.say(f"the link from {trainer.name} to {replica.name} breaks")
                replica.on_gone(trainer.name)
                self.check(replica)
        world.at(0.1, self.break_a_link)

    def check(self, node: Node) -> None:
        if not isinstance(node, Replica):
            return
        if node.alive:
            holder = node.lock.holder
            self.require(node.begun <= {holder}, f"{node.name}: {node.begun} work, {holder} holds")
        life, seen = self._taken[node.name]
        if life != node.life:
            seen = 0
        if len(node.ended) == seen and life == node.life:
            return
        for id, how in node.ended[seen:]:
            self.judge(node, id, how)
        self._taken[node.name] = node.life, len(node.ended)
        if node.alive:
            for trainer in self.trainers:
                self.balance(node, trainer.name)

    def judge(self, replica: Replica, id: StepId, how: str) -> None:
        """An attempt has ended at a replica."""
        if how in ("alone", "took over"):
            self.alone.add(id)
            route = [self.world.nodes[name] for name in replica.routes[id]]
            died = any(node.died_at > self.world.now - 15 for node in route)
            self.require(died or not self.gentle, f"{replica.name} is not left alone with {id} by short cuts")
        if how == "applied":
            key = (replica.stage, id.trainer, id.life, id.step)
            self.applied[key] += 1
            self.require(
                self.applied[key] == 1 or id in self.alone, f"I2: {id} twice at stage {replica.stage}"
            )
        if how == "took over":
            return
        ends = self.ends.setdefault(id, {})
        ends[replica.name, replica.life] = how
        living = {w: h for w, h in ends.items() if self.alive_since(*w)}
        split = "applied" in living.values() and len(set(living.values())) > 1
        self.require(not split or id in self.alone, f"no step is split: {id} ended {living}")

    def alive_since(self, name: str, life: int) -> bool:
        node = self.world.nodes[name]
        return node.alive and node.life == life

    def balance(self, replica: Replica, trainer: str) -> None:
        """sent = applied + aborted + lost + rolled_back, and what is still open."""
        ledger, applied = replica.ledger, replica.applied_by[trainer]
        still_open = sum(id.trainer == trainer for id in replica.begun)
        ended = sum(ledger[outcome, trainer] for outcome in ("aborted", "lost", "rolled_back"))
        sent = ledger["sent", trainer]
        parts = f"{sent} sent, {applied} applied, {ended} ended otherwise, {still_open} open"
        self.require(sent == applied + ended + still_open, f"ledger of {replica.name} for {trainer}: {parts}")

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(
                f"steps, seed {self.seed}, {self.world.now:.2f} s, {self.world.events} events: {what}"
            )
