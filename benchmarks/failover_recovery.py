"""Figures 1 and 2: how long a death is felt, and how soon a server that joins is of use."""

from __future__ import annotations

import asyncio
import sys
import time
from statistics import median
from typing import Any

from benchmarks.failover_scene import BOUND_S, STAGES, Counts, Figure, Row, Scene, quantile, running
from benchmarks.report import ROOT
from distqat.drill.drill_swarm import ServerLife
from distqat.launch.warm_processes import WarmForkServers

PHASE_S = 2.0  # a kill falls anywhere in so many seconds after the last replacement trains


async def recovery(figure: Figure, fork_servers: WarmForkServers, counts: Counts) -> None:
    """Figure 1: kill to the next applied step on the affected pipeline, minus the median undisturbed step."""
    async with running(fork_servers, counts.seed, "recovery", {}) as scene:
        kills: list[dict[str, Any]] = []
        figure.raw["kills"] = kills
        for number in range(counts.kills):
            await asyncio.sleep(scene.rng.uniform(0.0, PHASE_S))
            kills.append(await _one_kill(scene))
            _tell_recovery(figure, kills, counts)
            figure.say(f"kill {number + 1}: {kills[-1]['seconds']:.2f} s")
        lost: list[dict[str, Any]] = []
        figure.raw["lost_stages"] = lost
        for number in range(counts.lost_stages):
            lost.append(await _lose_a_stage(scene, STAGES[number % 2]))
            _tell_lost(figure, lost)
            figure.say(f"stage {lost[-1]['stage']} lost: {lost[-1]['seconds']:.2f} s")
    invariants(figure, scene)


async def _one_kill(scene: Scene) -> dict[str, Any]:
    victim = await scene.affected()
    pipelines = scene.watch.affected({victim.peer})
    steps = [float(step["seconds"]) for step in scene.watch.steps]
    at = scene.swarm.kill(victim)
    replacement = asyncio.ensure_future(scene.add())
    waited = await scene.recovered(pipelines, at, {victim.peer})
    added = await replacement
    used = await scene.used(added)
    return {
        "uid": victim.uid,
        "pipelines": sorted(pipelines),
        "undisturbed_s": median(steps),
        "seconds": max(0.0, waited - median(steps)),
        "replacement_trains_s": used - at,
    }


def _tell_recovery(figure: Figure, kills: list[dict[str, Any]], counts: Counts) -> None:
    seconds = [kill["seconds"] for kill in kills]
    p50, p95 = median(seconds), quantile(seconds, 0.95)
    step = 1000 * median(kill["undisturbed_s"] for kill in kills)
    back = median(kill["replacement_trains_s"] for kill in kills)
    what = f"kill to next step, {len(kills)} kills"
    figure.rows = [
        Row(f"{what}: p50", "<= 1 s", f"{p50:.2f} s", p50 <= 1.0),
        Row(f"{what}: p95", "<= 3 s", f"{p95:.2f} s", p95 <= 3.0),
        Row(f"{what}: max", "", f"{max(seconds):.2f} s"),
        Row("median undisturbed step, subtracted", "", f"{step:.0f} ms"),
        Row("kill to first step of the replacement: median", "", f"{back:.2f} s"),
    ]
    figure.raw["asked_for"] = counts.kills
    figure.changed()


async def _lose_a_stage(scene: Scene, stage: str) -> dict[str, Any]:
    """Both replicas of a stage die; one is replaced at once, the other when training goes on."""
    scene.watch.look()
    victims = await scene.until(
        f"two replicas of {stage}", lambda: scene.swarm.serving(stage) if _two(scene, stage) else None
    )
    steps = median(float(step["seconds"]) for step in scene.watch.steps)
    at = min(scene.swarm.kill(victim) for victim in victims)
    first = await scene.swarm.add_server()
    dead = {victim.peer for victim in victims}
    waited = await scene.recovered({0, 1}, at, dead)
    await first.serves(BOUND_S)
    parts = _parts(scene, first, at)
    await scene.used(await scene.add())
    await scene.whole(time.time())
    return {"stage": stage, "seconds": max(0.0, waited - steps), **parts}


def _two(scene: Scene, stage: str) -> bool:
    return len(scene.swarm.serving(stage)) == 2


def _parts(scene: Scene, replica: ServerLife, since: float) -> dict[str, float]:
    """Where the time from a death to the first step through its replacement went."""
    join = scene.join_of(replica.peer)
    slot = join["time"] - join["serve_s"]
    step = scene.first_through(replica.peer)
    serves = float(join["time"])
    return {
        "start_s": slot - since,  # fork, DHT, slot
        "fetch_s": join["state_s"],  # from a replica, or waiting for one that comes back and then from disk
        "join_s": join["serve_s"] - join["state_s"],  # becoming a member, declaring itself
        "first_step_s": float(step["time"]) - serves if step else float("nan"),
        "bytes": join["bytes"],
    }


def _tell_lost(figure: Figure, lost: list[dict[str, Any]]) -> None:
    figure.rows = [row for row in figure.rows if not row.what.startswith("no replica left")]
    worst = max(each["seconds"] for each in lost)
    parts = ", ".join(
        f"{name} {median(each[f'{name}_s'] for each in lost):.1f}"
        for name in ("start", "fetch", "join", "first_step")
    )
    figure.rows += [
        Row(f"no replica left, {len(lost)} times: worst", "<= 15 s", f"{worst:.1f} s", worst <= 15.0),
        Row("no replica left: median parts", "", f"{parts} s"),
    ]
    figure.changed()


async def joining(figure: Figure, fork_servers: WarmForkServers, counts: Counts) -> None:
    """Figure 2: from the start of a server to the first step through it, with a state of some 45 MB."""
    async with running(fork_servers, counts.seed, "joining", wide(counts.width)) as scene:
        joins: list[dict[str, Any]] = []
        figure.raw["joins"] = joins
        for number in range(counts.joins + counts.cold_joins):
            cold = number >= counts.joins
            victim = await scene.until("a server of back", lambda: _spare(scene, "back"))
            at = scene.swarm.kill(victim)
            pipelines = scene.watch.affected({victim.peer})
            if pipelines:
                await scene.recovered(pipelines, at, {victim.peer})
            joins.append(await (_cold_join(scene) if cold else _warm_join(scene)))
            _tell_joins(figure, joins)
            figure.say(f"join {number + 1}: {joins[-1]['seconds']:.2f} s")
    invariants(figure, scene)


def wide(width: float) -> dict[str, Any]:
    """Wider stages than the file's, and small batches, so that two cores can follow.

    At 0.52 of the full width `back` has 11.4 MB of weights, 45 MB with outer momentum and inner moments; at
    1.0 the weights alone are 42 MB and the state is four times that.
    """
    stages = [{"model_name": f"resnet18.{s}", "num_classes": 10, "width": width} for s in STAGES]
    small = {"diloco.batch_size_per_step": 8, "diloco.inner_steps": 5}
    return {"model_pipeline.pipeline": stages, **small}


def _spare(scene: Scene, stage: str) -> ServerLife | None:
    there = scene.swarm.serving(stage)
    return there[-1] if len(there) > 1 else None


async def _warm_join(scene: Scene) -> dict[str, Any]:
    replica = await scene.swarm.add_server()
    await replica.serves(BOUND_S)
    used = await scene.used(replica)
    parts = _parts(scene, replica, replica.started)
    return {"cold": False, "seconds": used - replica.started, **parts}


async def _cold_join(scene: Scene) -> dict[str, Any]:
    """As a volunteer does it: the command, with the import of everything; then one from the warm process."""
    settings = scene.swarm.settings
    before = {record["peer"] for record in _joined(scene)}
    flags = settings.argv(initial_peers=",".join(scene.swarm.peers))
    command = [sys.executable, str(ROOT / "start_servers.py"), "--num-servers=1", *flags]
    began = time.time()
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    try:
        fresh = lambda: [record for record in _joined(scene) if record["peer"] not in before]  # noqa: E731
        join = (await scene.until("the new server serves", fresh))[0]
        step = await scene.until("a step through it", lambda: scene.first_through(join["peer"]))
        slot = join["time"] - join["serve_s"]
        parts = {
            "start_s": slot - began,
            "fetch_s": join["state_s"],
            "join_s": join["serve_s"] - join["state_s"],
            "first_step_s": step["time"] - join["time"],
            "bytes": join["bytes"],
        }
        return {"cold": True, "seconds": step["time"] - began, **parts}
    finally:
        process.terminate()
        await process.wait()
        await scene.used(await scene.add())


def _joined(scene: Scene) -> list[Any]:
    return [record for record in scene.evidence().servers if record.get("event") == "join"]


def _tell_joins(figure: Figure, joins: list[dict[str, Any]]) -> None:
    figure.rows = []
    for cold, what in ((False, "server forked by a warm launcher"), (True, "start_servers.py from nothing")):
        own = [join for join in joins if join["cold"] is cold]
        if not own:
            continue
        seconds = [join["seconds"] for join in own]
        worst, fetch = max(seconds), [join["fetch_s"] for join in own]
        size = max(join["bytes"] for join in own) / 1e6
        start = median(join["start_s"] for join in own)
        figure.rows += [
            Row(f"{what}, {len(own)} joins: worst", "<= 10 s", f"{worst:.1f} s", worst <= 10.0),
            Row(f"{what}: median", "", f"{median(seconds):.1f} s, until the slot {start:.1f} s"),
            Row(
                f"{what}: state transfer, {size:.0f} MB and the inner moments",
                "",
                f"median {median(fetch):.2f} s, max {max(fetch):.2f} s",
            ),
        ]
    figure.changed()


def invariants(figure: Figure, scene: Scene) -> None:
    """I1 to I4 of a swarm that has ended, as the last rows."""
    tell_invariants(figure, scene.judge())


def tell_invariants(figure: Figure, held: dict[str, tuple[bool, str]]) -> None:
    for name, (good, evidence) in held.items():
        figure.rows.append(Row(name, "holds", "holds" if good else evidence, good))
        figure.raw.setdefault("invariants", {})[name] = evidence
    figure.changed()
