"""A world of discrete events: clocks that drift, nodes that crash and restart, a network at its worst.

One run is a function of its seed: everything happens in one order, and all chance comes from one source.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Cut = tuple[frozenset[str], str]  # these nodes, and how: "away" (two-way), "deaf" or "mute" (one-way)


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Faults:
    """How bad it is. Probabilities per message, rates per node and virtual second."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.005  # mean; exponential, so messages overtake each other
    crash_rate: float = 0.0
    cut_rate: float = 0.0  # of the whole world
    cut_s: float = 0.0  # the longest
    wrong_result: float = 0.0
    drift: float = 0.0  # clocks run faster or slower by up to this share

    @classmethod
    def drawn(cls, rng: random.Random) -> Faults:
        """Anything from a quiet network to a hopeless one, never without any fault."""
        faults = cls(
            loss=rng.choice([0.0, 0.02, 0.2]),
            duplication=rng.choice([0.0, 0.05, 0.3]),
            delay_s=rng.choice([0.005, 0.05, 0.3]),
            crash_rate=rng.choice([0.0, 0.01, 0.05]),
            cut_rate=rng.choice([0.0, 0.1, 0.3]),
            cut_s=rng.choice([2.0, 12.0]),
            wrong_result=rng.choice([0.0, 0.02, 0.15]),
            drift=rng.choice([0.0, 0.05]),
        )
        if not (faults.loss or faults.duplication or faults.crash_rate or faults.cut_rate):
            faults.crash_rate, faults.cut_rate = 0.03, 0.1
        return faults


class Node:
    """A process. What it sets in `start` is lost when it crashes; what `__init__` sets is its disk."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.life = 0
        self.alive = False
        self.died_at = -1e9
        self.offset = world.rng.uniform(0, 1e6)  # a monotonic clock begins anywhere
        self.rate = 1.0 + world.rng.uniform(-1, 1) * world.faults.drift
        world.nodes[name] = self

    @property
    def clock(self) -> float:
        return self.offset + self.rate * self.world.now

    def boot(self) -> None:
        if not self.alive:
            self.life += 1
            self.alive = True
            self.start()

    def crash(self) -> None:
        self.alive, self.died_at = False, self.world.now

    def start(self) -> None:
        raise NotImplementedError

    def receive(self, source: str, message: tuple[Any, ...]) -> None:
        """Call the method `on_<first word>` with the rest."""
        getattr(self, f"on_{message[0]}")(source, *message[1:])

    def send(self, to: str, *message: Any) -> None:
        self.world.send(self.name, to, message)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it then by this node's clock, if this life of the process still runs."""
        life = self.life

        def act() -> None:
            if self.alive and self.life == life:
                action()

        self.world.at(seconds / self.rate, act, self)

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self.after(seconds, again)

        self.after(seconds, again)


class World:
    """Everything happens in one order, which the seed decides."""

    def __init__(self, seed: int, faults: Faults, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.events = 0
        self.felt: Counter[str] = Counter()  # faults that happened
        self.trace = trace
        self._cuts: dict[int, Cut] = {}
        self._queue: list[tuple[float, int, Callable[[], None], Node | None]] = []
        self._numbers = itertools.count()

    def at(self, seconds: float, action: Callable[[], None], node: Node | None = None) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), action, node))

    def run(self, until: float, check: Callable[[Node], None]) -> None:
        """Events up to then; `check` after each, of the node that it happened at."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= until:
            self.now, _, action, node = pop(queue)
            action()
            self.events += 1
            if node is not None:
                check(node)
        self.now = until

    def say(self, what: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now:8.3f} {what}")

    def send(self, source: str, to: str, message: tuple[Any, ...]) -> None:
        rng, faults = self.rng, self.faults
        copies = 1
        if faults.duplication and rng.random() < faults.duplication:
            copies = 2
            self.felt["duplicated"] += 1
        node = self.nodes[to]
        for _ in range(copies):
            if faults.loss and rng.random() < faults.loss:
                self.felt["lost"] += 1
                continue
            delay = rng.expovariate(1 / faults.delay_s)
            self.at(delay, lambda: self._deliver(source, node, message), node)

    def _deliver(self, source: str, node: Node, message: tuple[Any, ...]) -> None:
        if not node.alive:
            return
        if self._cuts and self.cut(source, node.name):
            self.felt["cut off"] += 1
            return
        if self.trace is not None:
            self.say(f"{source} -> {node.name}: {message[0]} {message[1:]}")
        node.receive(source, message)

    def cut(self, source: str, to: str) -> bool:
        """Whether nothing gets from one to the other."""
        for names, how in self._cuts.values():
            if how == "away" and (source in names) != (to in names):
                return True
            if (how == "deaf" and to in names) or (how == "mute" and source in names):
                return True
        return False

    def apart(self, one: str, other: str) -> bool:
        """Whether they cannot speak with each other just now: dead, or cut in either direction."""
        dead = not (self.nodes[one].alive and self.nodes[other].alive)
        return dead or self.cut(one, other) or self.cut(other, one)

    def part(self, names: frozenset[str], how: str, seconds: float) -> None:
        """Cut these nodes off for a while."""
        number = next(self._numbers)
        self._cuts[number] = names, how
        self.felt[f"cuts {how}"] += 1
        self.say(f"cut {how}: {sorted(names)} for {seconds:.1f} s")
        self.at(seconds, lambda: self._cuts.pop(number, None) and self.say(f"healed {sorted(names)}"))  # type: ignore[func-returns-value]

    def heal(self) -> None:
        self._cuts.clear()

    def misbehave(self, victims: list[str], *, period: float = 0.5) -> None:
        """Crash, restart, cut and heal at random, again and again until the faults are taken away."""

        def again() -> None:
            rng, faults = self.rng, self.faults
            for name in victims:
                node = self.nodes[name]
                if node.alive and rng.random() < faults.crash_rate * period:
                    self.felt["crashes"] += 1
                    self.say(f"{name} crashes")
                    node.crash()
                    self.at(rng.uniform(0.1, 8.0), node.boot, node)
            if rng.random() < faults.cut_rate * period:
                names = frozenset(rng.sample(victims, rng.randint(1, max(1, len(victims) // 2))))
                self.part(names, rng.choice(["away", "away", "deaf", "mute"]), rng.uniform(0.3, faults.cut_s))
            if faults is not QUIET:
                self.at(period, again)

        self.at(period, again)

    def calm(self) -> None:
        """No more faults; who is down comes back within some seconds."""
        self.faults = QUIET
        self.heal()


QUIET = Faults()
