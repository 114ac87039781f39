"""Figure 4: digests after every committed round, with a kill in every third."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from benchmarks.failover_recovery import invariants
from benchmarks.failover_scene import STAGES, Counts, Figure, Row, Scene, arm, running
from distqat.drill.drill_swarm import ServerLife
from distqat.errors import RoleError
from distqat.launch.warm_processes import WarmForkServers

ANY_TIME = "any time"
POINTS = ("round.before_contribute", "round.before_vote", "round.before_merge", ANY_TIME)
EVERY = 3


async def rounds(figure: Figure, fork_servers: WarmForkServers, counts: Counts) -> None:
    """A server dies in every third round of the run; stages take turns, and so do places in the round."""
    changes = {"diloco.inner_steps": counts.inner_steps}
    async with running(fork_servers, counts.seed, "rounds", changes, armed=True) as scene:
        began, kills = _newest(scene), list[dict[str, Any]]()
        figure.raw["kills"] = kills
        for number in range(counts.rounds // EVERY):
            stage, point = STAGES[number % 2], POINTS[number // 2 % len(POINTS)]
            kills.append(await _one_death(scene, stage, point))
            target = began + EVERY * (number + 1)
            await scene.until(f"round {target}", lambda target=target: _newest(scene) >= target)
            if number % 5 == 4:
                _tell(figure, scene, began)
                figure.say(f"round {target - began}: {figure.rows[1].measured} with two members")
    _tell(figure, scene, began)
    invariants(figure, scene)


async def _one_death(scene: Scene, stage: str, point: str) -> dict[str, Any]:
    """Kill a server of a stage in its next round, at a named place or at any time; replace it at once."""
    victim: ServerLife = await scene.until(f"a server of {stage}", lambda: _one(scene, stage))
    if point == ANY_TIME:
        await asyncio.sleep(scene.rng.uniform(0.0, 2.0))
        if victim.lives:
            scene.swarm.kill(victim)
    else:
        arm(scene, victim, point)
        await scene.until(f"{victim.uid} dies at {point}", lambda: victim.role.returncode is not None)
    added = await scene.swarm.add_server()
    return {"stage": stage, "uid": victim.uid, "point": point, "replacement": added.number}


def _one(scene: Scene, stage: str) -> ServerLife | None:
    there = scene.swarm.serving(stage)
    return scene.rng.choice(there) if there else None


def _newest(scene: Scene) -> int:
    """The newest round that every stage has committed."""
    newest = dict.fromkeys(STAGES, 0)
    for record in scene.watch.rounds:
        if record["committed"]:
            newest[record["stage"]] = max(newest[record["stage"]], int(record["round"]))
    return min(newest.values())


def _tell(figure: Figure, scene: Scene, began: int) -> None:
    scene.watch.look()
    committed = [r for r in scene.watch.rounds if r["committed"] and int(r["round"]) > began]
    if not committed:
        raise RoleError("no round was committed")
    together = sum(int(record["members"]) >= 2 for record in committed)
    discarded = sum(not record["committed"] for record in scene.watch.rounds)
    compared, unequal = _digests(scene, began)
    share = together / len(committed)
    dead = sum(replica.died for replica in scene.swarm.replicas)
    last = max(int(record["round"]) for record in committed)
    figure.raw["rounds"] = {
        "until": last,
        "committed_of_all_stages": len(committed),
        "with_two_or_more": together,
        "discarded": discarded,
        "deaths": dead,
        "compared_digests": compared,
        "unequal": unequal,
    }
    figure.rows = [
        Row(
            f"digests equal, rounds {began + 1} to {last} of both stages, {dead} deaths",
            "100 %",
            f"{100 * (1 - len(unequal) / max(1, len(committed))):.1f} % ({compared} compared)",
            not unequal,
        ),
        Row("rounds that two members commit", ">= 90 %", f"{100 * share:.1f} %", share >= 0.9),
        Row("rounds discarded and done again", "", str(discarded)),
    ]
    figure.changed()


def _digests(scene: Scene, began: int) -> tuple[int, list[str]]:
    """How many digests of servers were compared with each other and the log's, and rounds that differ."""
    evidence = scene.evidence()
    held: dict[tuple[str, int], set[str]] = defaultdict(set)
    compared = 0
    for entry in evidence.log:
        if entry["kind"] in ("round", "restart"):
            held[entry["stage"], int(entry["round"])].add(entry["digest"])
    for record in evidence.servers:
        if record.get("event") == "round" and record.get("committed") and int(record["round"]) > began:
            held[record["uid"].partition(".")[0], int(record["round"])].add(record["digest"])
            compared += 1
    return compared, [f"{stage} {number}" for (stage, number), each in held.items() if len(each) > 1]
