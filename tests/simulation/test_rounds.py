"""Bad days for the outer rounds, by the thousand: members that serve agree, and rounds go on."""

from __future__ import annotations

import os
import random

import pytest
from tests.simulation.rounds import LEASE_S, Bugs, Client, Member
from tests.simulation.world import Faults, World

SEEDS = int(os.environ.get("DISTQAT_SIMULATION_SEEDS", "200"))
FAULTY_S, QUIET_S = 40.0, 30.0


class Violation(AssertionError):
    """An invariant does not hold."""


class Stage:
    """One run of one stage under one seed."""

    def __init__(self, seed: int, bugs: Bugs) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.world = World(seed, Faults.drawn(rng))
        self.client = Client(self.world, "client", bugs)
        names = [f"back.0.{index}.0" for index in range(rng.randint(1, 5))]
        self.members = [Member(self.world, name, [n for n in names if n != name], bugs) for name in names]
        self._seen_commits = 0
        self._digests: dict[int, str] = {}
        self._rounds = dict.fromkeys(names, 0)
        self._checked = dict.fromkeys(names, 0)
        self._served = dict.fromkeys(names, -1.0)  # when last

    def run(self) -> None:
        self.client.boot()
        late = self.world.rng.randrange(len(self.members))
        for index, member in enumerate(self.members):
            joins_late = index > 0 and index == late
            self.world.at(self.world.rng.uniform(5, 30) if joins_late else 0.0, member.boot)
        self.world.misbehave(["client", *(member.name for member in self.members)])
        self.world.run(FAULTY_S, self.check)
        self.world.faults = Faults.none()
        self.world.heal()
        for node in self.world.nodes.values():
            if not node.alive:
                self.world.at(8.5, lambda node=node: node.alive or node.boot())  # type: ignore[misc]
        before = len(self.client.commits)
        self.world.run(FAULTY_S + QUIET_S, self.check)
        self.require(len(self.client.commits) >= before + 3, "rounds go on when the faults are over")
        newest = max(self.client.log)
        recent = self.world.now - 10
        behind = [m.name for m in self.members if self._served[m.name] < recent or m.round < newest - 2]
        self.require(not behind, f"everybody serves when the faults are over, but {behind}")

    def check(self) -> None:
        now, log = self.world.now, self.client.log
        for commit, attempt in self.client.commits[self._seen_commits :]:
            self._seen_commits += 1
            known = self._digests.setdefault(commit.round, commit.digest)
            self.require(known == commit.digest, f"I3: one digest for round {commit.round}")
            holders = sum(
                m.results.get((commit.round, attempt)) == commit.digest
                for m in self.members
                if m.name in commit.members
            )
            self.require(
                2 * holders > len(commit.members), f"round {commit.round}: most hold what is committed"
            )
        for member in self.members:
            self.require(member.round >= self._rounds[member.name], f"I3: {member.name} never goes back")
            self._rounds[member.name] = member.round
            for round, digest in member.history[self._checked[member.name] :]:
                known = log.get(round, self._digests.get(round))
                self.require(known == digest, f"I1: {member.name} holds what the log says of round {round}")
            self._checked[member.name] = len(member.history)
            if not member.serving:
                continue
            self._served[member.name] = now
            if member.round < max(log):
                late = now - self.client.committed_at[member.round + 1]
                self.require(late <= LEASE_S, f"I1: {member.name} does not serve a round that is over")

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(f"seed {self.seed}, {self.world.now:.2f} s, {self.world.events} events: {what}")


def test_every_seed_keeps_the_invariants() -> None:
    commits = discards = 0
    for seed in range(SEEDS):
        stage = Stage(seed, Bugs())
        stage.run()  # a failure names its seed
        commits += len(stage.client.commits)
        discards += stage.client.discards
    assert commits > 5 * SEEDS
    assert discards > SEEDS / 10  # the faults were felt


@pytest.mark.parametrize("bug", ["no_quorum", "no_log", "commit_twice", "no_promise"])
def test_the_checks_find_a_planted_bug(bug: str) -> None:
    for seed in range(1000):
        try:
            Stage(seed, Bugs(**{bug: True})).run()
        except (Violation, AssertionError) as error:
            print(f"{bug}: found by {error}")
            return
    raise AssertionError(f"{bug} was not found")


def test_a_seed_replays_to_the_same_end() -> None:
    ends = []
    for _ in range(2):
        stage = Stage(7, Bugs())
        stage.run()
        ends.append((stage.world.events, stage.client.log, [member.history for member in stage.members]))
    assert ends[0] == ends[1]
