"""Figure 3: training while servers are killed all the time, beside runs that nobody disturbs."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import psutil

from benchmarks.failover_recovery import tell_invariants
from benchmarks.failover_scene import BOUND_S, Counts, Figure, Row, Scene, running
from distqat.drill.drill_swarm import ServerLife
from distqat.launch.process_survey import family
from distqat.launch.warm_processes import WarmForkServers

TAIL = 0.2  # the loss at N samples is the mean over this share of the samples before
POINTS = (0.25, 0.5, 0.75, 1.0)
NOISE = 2.0  # standard deviations


@dataclass
class Account:
    """CPU seconds of a swarm between two moments: every role and its daemon, fork servers aside."""

    scene: Scene
    _from: dict[int, float] = field(default_factory=dict)  # by PID: what does not count
    _ended: float = 0.0  # of servers that were killed since
    joining: float = 0.0  # of replacements until they served

    def begin(self) -> None:
        """Count from now on."""
        for pid in self._roots():
            self._from[pid] = cpu_seconds(pid)

    def serves(self, replica: ServerLife) -> None:
        """A replacement has begun to serve: what it used until now does not count."""
        self._from[replica.role.pid] = used = cpu_seconds(replica.role.pid)
        self.joining += used

    def kill(self, replica: ServerLife) -> float:
        """Kill a server, whose CPU counts up to here."""
        self._ended += cpu_seconds(replica.role.pid) - self._from.get(replica.role.pid, 0.0)
        return self.scene.swarm.kill(replica)

    def total(self) -> float:
        """Of replacements that do not serve yet nothing counts."""
        return self._ended + sum(
            cpu_seconds(pid) - self._from[pid] for pid in self._roots() if pid in self._from
        )

    def _roots(self) -> list[int]:
        swarm = self.scene.swarm
        servers = [replica.role.pid for replica in swarm.replicas if replica.lives]
        network = [pid for kind in ("monitor", "client") if (pid := swarm.pid_of(kind)) is not None]
        return [*network, *servers]


async def churn(figure: Figure, fork_servers: WarmForkServers, counts: Counts) -> None:
    """One undisturbed run, the churn, the other undisturbed runs."""
    calm: list[dict[str, Any]] = []
    figure.raw["undisturbed"] = calm
    for number in range(counts.undisturbed_runs):
        async with running(fork_servers, counts.seed + number, f"calm{number}", {}) as scene:
            calm.append(await _train(scene, counts.undisturbed_s))
        figure.say(f"undisturbed, seed {counts.seed + number}: {calm[-1]['samples']} samples")
        if number == 0:
            async with running(fork_servers, counts.seed, "churn", {}) as scene:
                disturbed = await _train(scene, counts.churn_s, kill_every_s=counts.kill_every_s)
            figure.raw["churn"] = disturbed
            ledger, held = _ledger(scene), scene.judge()
            figure.say(f"churn: {disturbed['kills']} kills, {disturbed['samples']} samples")
        _tell(figure, disturbed, calm, ledger)
    tell_invariants(figure, held)


async def _train(scene: Scene, seconds: float, kill_every_s: float | None = None) -> dict[str, Any]:
    """Train for so long, killing a server every `kill_every_s`; what was trained, and for how much CPU."""
    account = Account(scene)
    account.begin()
    began = time.time()
    killing = asyncio.ensure_future(_kill_on(account, kill_every_s)) if kill_every_s else None
    try:
        while time.time() - began < seconds:
            await asyncio.sleep(0.2)
            scene.watch.look()
            if killing is not None and killing.done():
                killing.result()
    finally:
        if killing is not None:
            killing.cancel()
    cpu, ended = account.total(), time.time()
    scene.watch.look()
    steps = [step for step in scene.watch.steps if began <= step["time"] <= ended and not step["skipped"]]
    samples = sum(int(step["samples"]) for step in steps)
    return {
        "seconds": ended - began,
        "samples": samples,
        "cpu_s": cpu,
        "cpu_of_replacements_until_they_served_s": account.joining,
        "samples_per_s": samples / (ended - began),
        "samples_per_cpu_s": samples / cpu,
        "kills": sum(replica.killed is not None for replica in scene.swarm.replicas),
        "losses": losses_by_samples(scene.watch.steps),
    }


async def _kill_on(account: Account, every_s: float) -> None:
    """Kill a server that serves, replace it at once, and so on."""
    scene, due = account.scene, time.monotonic()
    replaced = set[asyncio.Future[None]]()

    async def replace() -> None:
        replica = await scene.swarm.add_server()
        await replica.serves(BOUND_S)
        account.serves(replica)

    try:
        while True:
            due += every_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            there = scene.swarm.serving()
            if there:
                account.kill(scene.rng.choice(there))
                task = asyncio.ensure_future(replace())
                replaced.add(task)
            for done in [task for task in replaced if task.done()]:
                replaced.discard(done)
                done.result()
    finally:
        for task in replaced:
            task.cancel()


def losses_by_samples(steps: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Samples trained so far, and the loss of each step, from the first step of the run on."""
    found: list[tuple[int, float]] = []
    trained = 0
    for step in sorted(steps, key=lambda step: float(step["time"])):
        if not step["skipped"] and step["loss"] is not None:
            trained += int(step["samples"])
            found.append((trained, float(step["loss"])))
    return found


def loss_at(losses: Sequence[tuple[int, float]], samples: float) -> float:
    """Mean training loss over the last fifth of the first `samples` samples."""
    inside = [loss for trained, loss in losses if (1 - TAIL) * samples < trained <= samples]
    return mean(inside) if inside else math.nan


def _ledger(scene: Scene) -> dict[str, Any]:
    ledger = scene.evidence().ledger()
    return {
        "balanced": ledger.balanced,
        "applied_twice": ledger.applied_twice,
        "problems": [str(problem) for problem in ledger.problems[:20]],
        "stages": {stage: vars(own) for stage, own in ledger.stages.items()},
    }


def _tell(
    figure: Figure, disturbed: Mapping[str, Any], calm: Sequence[Mapping[str, Any]], ledger: Mapping[str, Any]
) -> None:
    figure.raw["ledger"] = ledger
    per_cpu = mean(run["samples_per_cpu_s"] for run in calm)
    ratio = disturbed["samples_per_cpu_s"] / per_cpu
    rate, calm_rate = disturbed["samples_per_s"], mean(run["samples_per_s"] for run in calm)
    figure.rows = [
        Row(
            f"samples per CPU-second, {disturbed['kills']} kills, over {len(calm)} undisturbed",
            ">= 0.9",
            f"{ratio:.3f} ({disturbed['samples_per_cpu_s']:.1f} to {per_cpu:.1f})",
            ratio >= 0.9,
        ),
        Row(
            "samples per second, as it is",
            "",
            f"{rate:.0f}, undisturbed {calm_rate:.0f}: {rate / calm_rate:.2f}",
        ),
        *_gaps(figure, disturbed, calm),
        Row("steps applied twice", "0", str(ledger["applied_twice"]), ledger["applied_twice"] == 0),
        Row(
            "ledger balanced",
            "yes",
            "yes" if ledger["balanced"] else str(ledger["problems"][:1]),
            ledger["balanced"],
        ),
    ]
    for stage, own in ledger["stages"].items():
        told = ", ".join(f"{name} {own[name]}" for name in ("sent", "aborted", "lost", "rolled_back"))
        figure.rows.append(Row(f"ledger of {stage}", "", told))
    figure.changed()


def _gaps(figure: Figure, disturbed: Mapping[str, Any], calm: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The loss gap at equal samples: judged at the most that all runs have, told at quarters of it."""
    most = min(run["losses"][-1][0] for run in (disturbed, *calm))
    gaps = figure.raw["loss_gaps"] = []
    for share in POINTS:
        own, others = (
            loss_at(disturbed["losses"], share * most),
            [loss_at(r["losses"], share * most) for r in calm],
        )
        base, spread = mean(others), stdev(others) if len(others) > 1 else math.nan
        allowed = max(0.02 * base, NOISE * spread) if len(others) > 1 else 0.02 * base
        gaps.append(
            {
                "samples": share * most,
                "churn": own,
                "undisturbed": others,
                "gap": own - base,
                "allowed": allowed,
            }
        )
    last = gaps[-1]
    told = f"{last['gap']:+.4f} of {mean(last['undisturbed']):.4f}, allowed {last['allowed']:.4f}"
    enough = len(calm) > 1
    quarters = ", ".join(f"{each['gap']:+.4f}" for each in gaps[:-1])
    return [
        Row(
            f"loss gap at {most} samples (mean training loss of the last fifth)",
            "<= max(2 %, 2 sd)",
            told,
            last["gap"] <= last["allowed"] if enough else None,
        ),
        Row("loss gap at a quarter, half, three quarters of them", "", quarters),
    ]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of everything below it, its daemon included, so far."""
    total = 0.0
    for process in family(pid):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
