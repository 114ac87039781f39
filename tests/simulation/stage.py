"""Outer rounds under one seed: the client and its servers, and what must hold after every event.

I1: who serves holds, to the bit, what the log says of its round, and serves no round that is over for
longer than its lease. I3: rounds never go back, ordered by (generation, round); one digest each; what is
committed most of the frozen members had computed. One slot has one owner. When the faults are over rounds
go on with everybody.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.simulation.rounds import LEASE_S, Client, Server
from tests.simulation.world import Faults, Node, Violation, World

FAULTY_S, BACK_S, QUIET_S = 30.0, 16.0, 12.0
Trace = Callable[[str], None] | None


class Stage:
    """One run; `roles` may put a faulty Client or Server in place of the right one."""

    def __init__(self, seed: int, trace: Trace = None, roles: Mapping[str, type] | None = None) -> None:
        rng = random.Random(f"rounds {seed}")
        roles = roles or {}
        self.seed = seed
        self.world = World(seed, Faults.drawn(rng), trace)
        self._folder = tempfile.TemporaryDirectory(prefix="distqat-simulation-")
        path = Path(self._folder.name) / "log.jsonl"
        self.client: Client = roles.get("client", Client)(self.world, "client", path)
        server = roles.get("server", Server)
        self.servers: list[Server] = [server(self.world, f"p{n}") for n in range(rng.randint(1, 5))]
        self._seen_commits = 0
        self._newest = (0, 0)
        self._held = {s.name: (0, -1, 0) for s in self.servers}  # generation, round, life
        self._served = dict.fromkeys(self._held, -1.0)

    def run(self) -> Counter[str]:
        """The whole run; what happened in it. Raises Violation."""
        try:
            return self._run()
        finally:
            self.client.log.close()
            self._folder.cleanup()

    def _run(self) -> Counter[str]:
        world, client = self.world, self.client
        client.boot()
        late = world.rng.randrange(len(self.servers))
        for index, server in enumerate(self.servers):
            world.at(world.rng.uniform(5, 25) if 0 < index == late else 0.0, server.boot, server)
        world.misbehave(["client", *(server.name for server in self.servers)])
        world.run(FAULTY_S, self.check)
        world.calm()
        world.run(FAULTY_S + BACK_S, self.check)
        before = len(client.commits)
        world.run(FAULTY_S + BACK_S + QUIET_S, self.check)
        self.require(len(client.commits) >= before + 2, "rounds go on when the faults are over")
        recent, newest = world.now - 5, client.newest[1]
        behind = [s.name for s in self.servers if self._served[s.name] < recent or s.round < newest - 1]
        self.require(not behind, f"everybody serves when the faults are over, but {behind}")
        said: Counter[str] = Counter(events=world.events, faults=sum(world.felt.values()))
        said.update(rounds=len(client.commits), discarded=client.discards, restarts=client.restarts)
        said["restarted"] = sum(server.life > 1 for server in self.servers)
        return said

    def check(self, node: Node) -> None:
        if node is self.client:
            self.check_commits()
        elif isinstance(node, Server):
            self.check_server(node)

    def check_commits(self) -> None:
        client = self.client
        generation, round, digest = client.newest
        self.require((generation, round) >= self._newest, f"I3: the log went back to {generation}, {round}")
        self._newest = generation, round
        known = client.known.get((generation, round))
        self.require(known == digest, f"I3: one digest for round {round}, {known} and {digest}")
        for number, commit, attempt in client.commits[self._seen_commits :]:
            self._seen_commits += 1
            known = client.known[number, commit.round]
            self.require(known == commit.digest, f"I3: one digest for round {commit.round}")
            key = number, commit.round, attempt
            holders = sum(server.results.get(key) == commit.digest for server in self.servers)
            of = len(commit.members)
            self.require(2 * holders > of, f"round {commit.round}: {holders} of {of} had its result")

    def check_server(self, server: Server) -> None:
        if not server.alive:
            return
        generation, round, life = self._held[server.name]
        held = server.generation, server.round
        if life == server.life:
            self.require(held >= (generation, round), f"I3: {server.name} never goes back, but to {held}")
        self._held[server.name] = *held, server.life
        if server.round < 0 or not server.serving:
            return
        self._served[server.name] = self.world.now
        known = self.client.known.get(held)
        self.require(known == server.digest, f"I1: {server.name} serves what the log says of round {held}")
        over = self.client.ended_at.get(held)
        if over is not None and held != self._newest:
            late = (self.world.now - over) * server.rate
            self.require(late <= LEASE_S, f"I1: {server.name} serves {held} {late:.2f} s after its end")
        owners = [s.name for s in self.servers if s is not server and s.serving and s.uid == server.uid]
        self.require(not owners, f"one owner of {server.uid}, but {server.name} and {owners}")

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(
                f"rounds, seed {self.seed}, {self.world.now:.2f} s, {self.world.events} events: {what}"
            )
