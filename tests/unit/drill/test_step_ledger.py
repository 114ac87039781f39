"""The ledger finds what must not be, and balances whatever a swarm may do."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distqat.drill.step_journal import read_journals
from distqat.drill.step_ledger import check_ledger

STAGES = ("front", "back")
Record = dict[str, Any]


@dataclass
class Swarm:
    """Writes the records of a swarm that keeps all rules."""

    rng: random.Random
    trainers: list[Record] = field(default_factory=list)
    servers: dict[str, list[Record]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    since: dict[str, int] = field(default_factory=dict)
    applied: dict[str, int] = field(default_factory=dict)
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    lives: int = 0

    def server(self, stage: str, index: int) -> tuple[str, str]:
        """Who holds a slot: its UID and its peer."""
        uid = f"{stage}.0.{index}.0"
        for peer, records in self.servers.items():
            if peer not in self.gone and records[0]["uid"] == uid:
                return uid, peer
        self.lives += 1
        peer = f"peer{self.lives}"
        self.servers[peer] = [{"event": "join", **self.who(uid, peer)}]
        self.since[peer] = self.applied[peer] = 0
        return uid, peer

    def who(self, uid: str, peer: str) -> Record:
        return {"uid": uid, "peer": peer, "tenancy": f"{uid}/{peer}"}

    def count(self, stage: str, what: str, number: int = 1) -> None:
        counts = self.expected.setdefault(stage, {})
        counts[what] = counts.get(what, 0) + number

    def apply(self, uid: str, peer: str, id: list[Any], outcome: str) -> None:
        self.servers[peer].append({"event": outcome, **self.who(uid, peer), "id": id})
        if outcome == "applied":
            self.since[peer] += 1
            self.applied[peer] += 1

    def round(self, peer: str) -> None:
        uid = self.servers[peer][0]["uid"]
        record = {"event": "round", "committed": True, "steps": self.since[peer], **self.who(uid, peer)}
        self.servers[peer].append({**record, "server_applied": self.applied[peer]})
        self.since[peer] = 0

    def kill(self, peer: str) -> None:
        stage = self.servers[peer][0]["uid"].partition(".")[0]
        self.gone.add(peer)
        self.count(stage, "rolled_back", self.since[peer])
        self.count(stage, "applied", -self.since[peer])

    def step(self, trainer: str, number: int) -> None:
        """One step to its commit, with whatever may come between."""
        attempt = 0
        while self.rng.random() < 0.2:
            self.tell("abort", [trainer, 1, number, attempt], self.route(), lost=[])
            attempt += 1
        id, route = [trainer, 1, number, attempt], self.route()
        outcome = "skipped" if self.rng.random() < 0.1 else "applied"
        trains = self.rng.choice([STAGES, STAGES, *((stage,) for stage in STAGES)])
        lost = [at for at in route if outcome == "applied" and self.rng.random() < 0.05]
        for uid, peer in route:
            stage = uid.partition(".")[0]
            own = outcome if stage in trains else "frozen"
            if (uid, peer) not in lost:
                self.apply(uid, peer, id, own)
                self.count(stage, own)
                continue
            self.kill(peer)
            self.count(stage, "lost")
            if self.rng.random() < 0.5:  # it died after its update and before its answer
                self.apply(uid, peer, id, own)
        frozen = [uid for uid, _ in route if uid.partition(".")[0] not in trains]
        told = {"frozen": frozen} if frozen else {}
        self.tell("step", id, route, lost=[u for u, _ in lost], skipped=outcome == "skipped", **told)

    def route(self) -> list[tuple[str, str]]:
        return [self.server(stage, self.rng.randrange(2)) for stage in STAGES]

    def tell(self, event: str, id: list[Any], route: list[tuple[str, str]], **more: Any) -> None:
        uids, peers = [uid for uid, _ in route], [peer for _, peer in route]
        self.trainers.append({"event": event, "id": id, "route": uids, "peers": peers, **more})
        for uid in uids:
            self.count(uid.partition(".")[0], "sent")
            if event == "abort":
                self.count(uid.partition(".")[0], "aborted")

    def run(self, steps: int) -> Swarm:
        for number in range(1, steps + 1):
            for trainer in ("a", "b"):
                self.step(trainer, number)
            for peer in [peer for peer in self.servers if peer not in self.gone]:
                if self.rng.random() < 0.3:
                    self.round(peer)
                elif self.rng.random() < 0.05:
                    self.kill(peer)
        return self

    def check(self) -> Any:
        return check_ledger(self.trainers, [r for each in self.servers.values() for r in each], self.gone)

    def journal(self, event: str = "applied") -> list[tuple[str, int]]:
        """Where journalled steps stand: peer and place, those that their trainer knows of as answered."""
        lost = {(tuple(t["id"]), uid) for t in self.trainers for uid in t.get("lost", ())}
        return [
            (peer, place)
            for peer, records in self.servers.items()
            for place, record in enumerate(records)
            if record["event"] == event and (tuple(record["id"]), record["uid"]) not in lost
        ]


swarms = st.builds(
    lambda seed, steps: Swarm(random.Random(seed)).run(steps), st.integers(), st.integers(3, 25)
)


@given(swarms)
def test_what_keeps_the_rules_balances(swarm: Swarm) -> None:
    ledger = swarm.check()
    assert ledger.problems == []
    assert ledger.balanced
    assert ledger.applied_twice == 0
    names = ("sent", "applied", "skipped", "frozen", "aborted", "lost", "rolled_back")
    for stage, own in ledger.stages.items():
        wanted = {name: swarm.expected[stage].get(name, 0) for name in names}
        assert {name: getattr(own, name) for name in names} == wanted


@given(swarms, st.randoms(use_true_random=False))
def test_a_step_that_is_applied_twice_is_found(swarm: Swarm, rng: random.Random) -> None:
    peer, place = rng.choice(swarm.journal())
    line = swarm.servers[peer][place]
    stage = line["uid"].partition(".")[0]
    others = [p for p, records in swarm.servers.items() if records[0]["uid"].partition(".")[0] == stage]
    other = rng.choice(others)
    again = {**line, "uid": swarm.servers[other][0]["uid"], "peer": other}
    again["tenancy"] = swarm.servers[other][0]["tenancy"]
    again["id"] = [*line["id"][:3], line["id"][3] + rng.randrange(2)]
    swarm.servers[other].append(again)
    ledger = swarm.check()
    assert ledger.applied_twice == 1
    assert any(problem.stage == stage and "applied 2 times" in problem.what for problem in ledger.problems)
    assert not ledger.balanced


@given(swarms, st.randoms(use_true_random=False))
def test_a_step_that_a_journal_misses_is_found(swarm: Swarm, rng: random.Random) -> None:
    peer, place = rng.choice(swarm.journal())
    line = swarm.servers[peer].pop(place)
    ledger = swarm.check()
    assert any(f"step {line['id'][2]} " in p.id and "not in its journal" in p.what for p in ledger.problems)
    assert not ledger.balanced


@given(swarms, st.randoms(use_true_random=False))
def test_an_aborted_attempt_that_was_applied_is_found(swarm: Swarm, rng: random.Random) -> None:
    uid, peer = swarm.server("front", 0)
    swarm.tell("abort", ["a", 1, 1000, 0], [(uid, peer)], lost=[])
    swarm.apply(uid, peer, ["a", 1, 1000, 0], "applied")
    problem = next(p for p in swarm.check().problems if "aborted, and applied" in p.what)
    assert "step 1000" in problem.id


@given(swarms)
def test_a_loss_without_a_death_is_found(swarm: Swarm) -> None:
    route = [swarm.server(stage, 0) for stage in STAGES]
    swarm.tell("step", ["a", 1, 1000, 0], route, lost=[route[0][0]])
    swarm.apply(*route[1], ["a", 1, 1000, 0], "applied")
    assert [p for p in swarm.check().problems if "did not die" in p.what]


@given(swarms)
def test_the_last_step_of_a_trainer_may_be_untold_but_no_other(swarm: Swarm) -> None:
    last = max(
        (t for t in swarm.trainers if t["event"] == "step" and t["id"][0] == "a"), key=lambda t: t["id"]
    )
    swarm.trainers.remove(last)
    ledger = swarm.check()
    assert ledger.balanced or last["lost"]
    first = next(t for t in swarm.trainers if t["event"] == "step" and t["id"][0] == "b")
    if (
        len([t for t in swarm.trainers if t["event"] == "step" and t["id"][0] == "b"]) > 1
        and not first["lost"]
    ):
        swarm.trainers.remove(first)
        assert [p for p in swarm.check().problems if "never tells" in p.what]


@given(swarms)
def test_a_count_that_is_not_the_journals_is_found(swarm: Swarm) -> None:
    peer = next(iter(swarm.servers))
    swarm.round(peer)
    swarm.servers[peer][-1]["server_applied"] += 1
    assert [p for p in swarm.check().problems if "counts" in p.what and peer in p.what]


@given(swarms)
def test_records_are_read_only(swarm: Swarm) -> None:
    before = copy.deepcopy((swarm.trainers, swarm.servers))
    read_journals([r for each in swarm.servers.values() for r in each], swarm.gone)
    swarm.check()
    assert before == (swarm.trainers, swarm.servers)
