"""What must hold after every fault (docs/faults.md): I1 to I4 and I6, over what processes wrote down."""

from __future__ import annotations

import math
import time
from typing import Any

from tests.failover.process_swarm import STAGES, ProcessSwarm, until

HEAL_S = 120.0  # a bound for a shared machine; what it took is printed


def check(swarm: ProcessSwarm) -> None:
    """I1 to I4, over everything since the run began."""
    swarm.check_digests()
    steps_count_once(swarm)
    rounds_never_go_back(swarm)
    everything_is_finite(swarm)


def steps_count_once(swarm: ProcessSwarm) -> None:
    """I2 at the trainers: every life of a trainer has each of its steps once, in order.

    The ledger, which needs all journals to be over, is balanced when the swarm ends.
    """
    last: dict[tuple[str, int], int] = {}
    for step in swarm.steps():
        trainer, life, _, _ = step["id"]
        before = last.get((trainer, life), step["step"] - 1)
        assert step["step"] == before + 1, f"{trainer}: step {step['step']} after {before}"
        last[trainer, life] = step["step"]


def rounds_never_go_back(swarm: ProcessSwarm) -> None:
    """I3: each round of a stage follows the last one; only a restart of a lost stage steps back."""
    newest: dict[str, int] = {}
    for entry in swarm.log_entries("round", "restart"):
        stage, number = entry["stage"], entry["round"]
        if entry["kind"] == "round":
            assert number == newest.get(stage, -1) + 1, (stage, number, newest)
        newest[stage] = number


def everything_is_finite(swarm: ProcessSwarm) -> None:
    """I4: every loss is a number, and training has not gone astray."""
    losses = [step["loss"] for step in swarm.steps()]
    assert all(loss is not None and math.isfinite(loss) for loss in losses)
    if len(losses) > 200:
        assert sum(losses[-50:]) < 1.5 * sum(losses[:50]), "the loss went up"


def died(swarm: ProcessSwarm, uid: str, since: float) -> list[dict[str, Any]]:
    """I6: the client's events of servers whose links ended without a goodbye."""
    events = swarm.records("client.jsonl", "fault")
    return [e for e in events if e["kind"] == "server_died" and e["uid"] == uid and e["time"] >= since]


def aborted(swarm: ProcessSwarm, uid: str, since: float) -> list[dict[str, Any]]:
    """I6: attempts that trainers gave up because of a replica, each to be run again."""
    events = swarm.records("trainer_*.jsonl", "abort")
    return [event for event in events if event["at"] == uid and event["time"] >= since]


def lost(swarm: ProcessSwarm, uid: str, since: float) -> list[dict[str, Any]]:
    """I6: committed steps that a replica did not answer."""
    return [step for step in swarm.steps(since) if uid in step["lost"]]


def whole(swarm: ProcessSwarm, since: float) -> bool:
    """After that moment every stage committed a round with two members, over the steps of two trainers."""
    rounds = [r for r in swarm.records("client.jsonl", "round") if r["time"] > since and r["committed"]]
    last = {r["stage"]: r["members"] for r in rounds}
    routes = {(s["pipeline"], uid) for s in swarm.steps(since) for uid in s["route"]}
    return (
        len(swarm.pids("server")) == 4
        and [last.get(stage) for stage in STAGES] == [2, 2]
        and {pipeline for pipeline, _ in routes} == {0, 1}
        and len({uid for _, uid in routes}) == 4
    )


def heals(swarm: ProcessSwarm, fault: float) -> None:
    """As before the fault: four servers, two trainers, rounds with two members; then all is checked."""
    try:
        until(lambda: whole(swarm, fault), "the swarm is whole again", HEAL_S)
    except AssertionError:
        print(swarm.last_lines())
        raise
    healed = time.time()
    until(lambda: whole(swarm, healed), "it stays whole", HEAL_S)
    print(f"whole again within {healed - fault:.1f} s")
    check(swarm)
