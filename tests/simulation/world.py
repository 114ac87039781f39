"""A world of discrete events: a virtual clock, nodes that crash and restart, a network at its worst."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Faults:
    """How bad it is. Probabilities per message, rates per virtual second."""

    loss: float = 0.05
    duplication: float = 0.05
    delay_s: float = 0.05  # mean; exponential, so messages overtake each other
    crash_rate: float = 0.02
    partition_rate: float = 0.02
    wrong_result: float = 0.02

    @classmethod
    def drawn(cls, rng: random.Random) -> Faults:
        """Anything from a quiet network to a hopeless one."""
        return cls(
            loss=rng.choice([0.0, 0.02, 0.2]),
            duplication=rng.choice([0.0, 0.05, 0.3]),
            delay_s=rng.choice([0.005, 0.05, 0.5]),
            crash_rate=rng.choice([0.0, 0.01, 0.05]),
            partition_rate=rng.choice([0.0, 0.02, 0.1]),
            wrong_result=rng.choice([0.0, 0.02, 0.15]),
        )

    @classmethod
    def none(cls) -> Faults:
        return cls(0.0, 0.0, 0.005, 0.0, 0.0, 0.0)


class Node:
    """A process. What it sets in `start` is lost when it crashes; what `__init__` sets is its disk."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.life = 0
        self.alive = False
        world.nodes[name] = self

    def boot(self) -> None:
        self.life += 1
        self.alive = True
        self.start()

    def crash(self) -> None:
        self.alive = False

    def start(self) -> None:
        raise NotImplementedError

    def receive(self, source: str, message: tuple[Any, ...]) -> None:
        """Call the method `on_<first word>` with the rest."""
        getattr(self, f"on_{message[0]}")(source, *message[1:])

    def send(self, to: str, *message: Any) -> None:
        self.world.send(self.name, to, message)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it then, if this life of the process still runs."""
        life = self.life

        def act() -> None:
            if self.alive and self.life == life:
                action()

        self.world.at(seconds, act)

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self.after(seconds, again)

        self.after(seconds, again)


class World:
    """Everything happens in one order, which the seed decides."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.events = 0
        self._cut: dict[str, int] = {}  # node -> side of the partition; one-way where negative
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), action))

    def run(self, until: float, check: Callable[[], None]) -> None:
        """Events up to then; `check` after each."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            self.events += 1
            check()
        self.now = until

    def send(self, source: str, to: str, message: tuple[Any, ...]) -> None:
        copies = 1 + (self.rng.random() < self.faults.duplication)
        for _ in range(copies):
            if self.rng.random() >= self.faults.loss:
                delay = self.rng.expovariate(1 / self.faults.delay_s)
                self.at(delay, lambda: self._deliver(source, to, message))

    def _deliver(self, source: str, to: str, message: tuple[Any, ...]) -> None:
        node = self.nodes[to]
        if node.alive and not self.cut(source, to):
            node.receive(source, message)

    def cut(self, source: str, to: str) -> bool:
        """Whether nothing gets from one to the other."""
        there, here = self._cut.get(source, 0), self._cut.get(to, 0)
        if min(there, here) < 0:
            return here < 0  # one-way: it is heard and hears nothing
        return there != here

    def partition(self, names: list[str], side: int) -> None:
        self._cut = dict.fromkeys(names, side)

    def heal(self) -> None:
        self._cut = {}

    def misbehave(self, victims: list[str], *, period: float = 1.0) -> None:
        """Crash, restart, cut and heal at random, again and again until the faults are taken away."""

        def again() -> None:
            rng, faults = self.rng, self.faults
            for name in victims:
                node = self.nodes[name]
                if node.alive and rng.random() < faults.crash_rate * period:
                    node.crash()
                    self.at(rng.uniform(0.1, 8.0), lambda node=node: node.alive or node.boot())  # type: ignore[misc]
            if rng.random() < faults.partition_rate * period:
                cut = rng.sample(victims, rng.randint(1, max(1, len(victims) // 2)))
                self.partition(cut, rng.choice([1, 1, -1]))
                self.at(rng.uniform(0.5, 15.0), self.heal)
            self.at(period, again)

        self.at(period, again)
