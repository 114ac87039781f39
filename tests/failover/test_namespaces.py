"""Partitions and bad networks between real processes, each server in a network namespace of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from tests.failover.namespaces import HUB, Namespaces, missing
from tests.failover.process_swarm import STAGES, ProcessSwarm, until

REASON = missing()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"no network namespaces here: {REASON}"),
    pytest.mark.timeout(300),
    pytest.mark.slow,
    pytest.mark.faults,
]
VICTIM = "front.0.0.0"
REROUTED_S, RETURNED_S = 3.0, 10.0  # goals of the fault table; asserted is more, for a busy machine


class ScatteredSwarm(ProcessSwarm):
    """The client's side in the hub, every server on an island."""

    def __init__(self, folder: Path, network: Namespaces) -> None:
        super().__init__(folder, servers=len(network.islands))
        self.network = network
        self._next = iter(network.islands)
        self._where = HUB

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, code: int = 0) -> int:
        inside = [*self.network.entering(self._where), *command]
        inside.append(f"--public-ip={self.network.address(self._where)}")
        return super().start(inside, env={"DISTQAT_HOST_ID": self._where, **(env or {})}, code=code)

    def add_servers(self, count: int, peers: str = "") -> int:
        for _ in range(count):
            self._where = next(self._next)
            number = super().add_servers(1, peers)
        return number

    def island_of(self, uid: str) -> str:
        """Where the holder of a slot lives."""
        parents = {parent.pid for parent in psutil.Process(self.pid(f"server {uid}")).parents()}
        numbers = range(1, len(self.network.islands) + 1)
        return self.network.islands[next(n for n in numbers if self.launcher(n).pid in parents) - 1]

    def lease(self, uid: str, *, held: bool, since: float) -> float | None:
        """When a server said that its leave to serve was over, or held again."""
        found = self.records("server_*.jsonl", "lease")
        return next(
            (r["time"] for r in found if r["uid"] == uid and r["held"] is held and r["time"] > since), None
        )


@pytest.fixture
def network() -> Iterator[Namespaces]:
    with Namespaces(4) as made:
        yield made
    assert made.left() == []


@pytest.fixture
def swarm(tmp_path: Path, network: Namespaces) -> Iterator[ScatteredSwarm]:
    with ScatteredSwarm(tmp_path, network) as running:
        until(lambda: all(running.together(stage) for stage in STAGES), "rounds with all members", 60.0)
        yield running


def returns(swarm: ScatteredSwarm, what: str, healed: float) -> None:
    """Every stage commits with all its replicas again, and all agree."""

    def together() -> float | None:
        rounds = [r for r in swarm.records("client.jsonl", "round") if r["time"] > healed and r["committed"]]
        first = [
            min((r["time"] for r in rounds if r["stage"] == s and r["members"] == 2), default=0.0)
            for s in STAGES
        ]
        return max(first) if all(first) else None

    took = until(together, "rounds with all replicas", 60.0) - healed
    print(f"{what}: all replicas in one round {took:.2f} s after it healed (goal {RETURNED_S:.0f} s)")
    swarm.check_digests()


@pytest.mark.parametrize("ways", ["both ways", "it hears nothing", "it is not heard"])
def test_a_server_is_cut_off(swarm: ScatteredSwarm, ways: str) -> None:
    until(lambda: swarm.steps(time.time() - 1, through=VICTIM), f"a step through {VICTIM}")
    affected = swarm.steps(through=VICTIM)[-1]["pipeline"]
    island = swarm.island_of(VICTIM)
    swarm.network.cut(island, hears=ways == "it is not heard", is_heard=ways == "it hears nothing")
    cut = time.time()
    took = swarm.next_step(cut, affected)
    print(f"{ways}: next applied step {took:.2f} s after the cut (goal {REROUTED_S:.0f} s)")
    until(lambda: swarm.lease(VICTIM, held=False, since=cut), "the victim stops serving", 30.0)
    assert swarm.network.dropped(island) > 0
    before = {stage: swarm.committed(stage) for stage in STAGES}
    until(lambda: all(swarm.committed(s) >= before[s] + 2 for s in STAGES), "the others go on")
    swarm.network.heal(island)
    returns(swarm, ways, time.time())


def test_two_halves(swarm: ScatteredSwarm) -> None:
    far = [swarm.island_of(f"{stage}.0.1.0") for stage in STAGES]
    near = [island for island in swarm.network.islands if island not in far]
    for island in far:
        swarm.network.cut(island, HUB, *near)
    cut = time.time()
    for stage in STAGES:
        until(lambda: swarm.lease(f"{stage}.0.1.0", held=False, since=cut), "it stops serving", 30.0)  # noqa: B023
    paused = time.time()
    before = {stage: swarm.committed(stage) for stage in STAGES}
    until(lambda: all(swarm.committed(s) >= before[s] + 2 for s in STAGES), "the near half goes on")
    assert all(swarm.network.dropped(island) for island in far)
    alone = [r for r in swarm.records("server_*.jsonl", "round") if r["time"] > paused and r["committed"]]
    assert {r["uid"] for r in alone} <= {f"{stage}.0.0.0" for stage in STAGES}
    for island in far:
        swarm.network.heal(island)
    returns(swarm, "halves", time.time())


@pytest.mark.parametrize("kind", ["loss 5 %", "10 Mbit/s"])
def test_training_on_a_bad_network(swarm: ScatteredSwarm, kind: str) -> None:
    for island in swarm.network.islands:
        if kind == "10 Mbit/s":
            swarm.network.narrow(island, "10mbit")
        else:
            swarm.network.lose(island, int(re.findall(r"\d+", kind)[0]))
    began = time.time()
    before = {stage: swarm.committed(stage) for stage in STAGES}
    until(lambda: all(swarm.committed(s) >= before[s] + 5 for s in STAGES), "five rounds", 90.0)
    steps = swarm.steps(began)
    retries = sum({s["pipeline"]: s["retries"] for s in steps}.values())
    took = time.time() - began
    print(f"{kind}: {len(steps)} steps in {took:.1f} s, {retries} run again since the start")
    assert retries <= max(2, len(steps) // 20)
    if kind != "10 Mbit/s":
        assert all(swarm.network.dropped(island) for island in swarm.network.islands)
    swarm.check_digests()
