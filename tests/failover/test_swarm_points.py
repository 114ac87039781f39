"""Rows 1 to 4 of the fault table: a process of a running swarm dies at a named point; the rest goes on."""

from __future__ import annotations

import random
import re
import sys
import time

import pytest
from tests.failover.invariants import aborted, check, died, heals, lost
from tests.failover.process_swarm import ProcessSwarm, until

from distqat.checkpoint import CheckpointStore

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles and their daemons in /proc"),
    pytest.mark.timeout(400),
]
slow = pytest.mark.slow
ABORTED, LOST = "run again", "lost"


def victim(swarm: ProcessSwarm, stage: str, rng: random.Random) -> tuple[str, int]:
    """A replica of a stage. Who died lately is spared, or its launcher would take it for a crash loop."""
    uids = [f"{stage}.0.{index}.0" for index in range(2)]
    uid = rng.choice(uids)
    young = time.time() - 120
    if any(swarm.began(uid) > young for uid in uids):
        uid = min(uids, key=swarm.began)
    return uid, swarm.pid(f"server {uid}")


def dies(swarm: ProcessSwarm, pid: int, point: str, hit: int) -> float:
    """Arm a role and wait until it has died there; the time just before."""
    print(f"PID {pid} dies at {point}, passage {hit}")
    others = {p for p in swarm.pids("server") if p != pid}
    began = time.time()
    swarm.arm(pid, f"{point}:kill9@{hit}")
    until(lambda: swarm.fired(pid) and not swarm.alive([pid]), f"{point} has fired")
    assert others <= set(swarm.pids("server")), "the healthy were left alone"
    return began


def said_once(swarm: ProcessSwarm, pid: int) -> None:
    """I6: one sentence of the launcher for the user."""
    sentence = rf"\(PID {pid}\) ended with SIGKILL: starting again"
    until(lambda: re.search(sentence, swarm.all_said()), "the launcher says it")
    assert len(re.findall(sentence, swarm.all_said())) == 1


@pytest.mark.parametrize(
    ("stage", "point", "outcome"),
    [
        ("front", "stage.forward", ABORTED),
        pytest.param("front", "stage.backward.before_apply", ABORTED, marks=slow),
        pytest.param("front", "stage.backward.before_answer", ABORTED, marks=slow),
        ("back", "stage.backward.before_answer", ABORTED),
        pytest.param("front", "stage.prepare", ABORTED, marks=slow),
        pytest.param("back", "stage.prepare", ABORTED, marks=slow),
        ("front", "stage.commit.before_apply", LOST),
        pytest.param("back", "stage.commit.before_apply", LOST, marks=slow),
        pytest.param("front", "stage.commit.after_apply", LOST, marks=slow),
        ("back", "stage.commit.after_apply", LOST),
    ],
)
def test_a_server_dies_in_a_step(
    swarm: ProcessSwarm, stage: str, point: str, outcome: str, fault_seed: int
) -> None:
    """Before the first commit the step is run again; in it, it is lost at that stage and never repeated."""
    rng = random.Random(f"{fault_seed} {stage} {point}")
    uid, pid = victim(swarm, stage, rng)
    began = dies(swarm, pid, point, rng.randrange(1, 30))
    told = until(lambda: died(swarm, uid, began), "the client's event")
    assert len(told) == 1
    events = until(lambda: (aborted if outcome == ABORTED else lost)(swarm, uid, began), outcome)
    assert len(lost(swarm, uid, began)) == (outcome == LOST)
    assert len(aborted(swarm, uid, began)) <= 2, "at most one attempt of each trainer"
    affected, fault = events[0]["pipeline"], told[0]["time"]
    print(f"died -> next applied step of pipeline {affected}: {swarm.next_step(fault, affected):.3f} s")
    said_once(swarm, pid)
    heals(swarm, fault)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("round.gathering", marks=slow),
        pytest.param("round.before_contribute", marks=slow),
        "round.sending",
        pytest.param("round.reducing", marks=slow),
        pytest.param("round.before_vote", marks=slow),
        "round.before_merge",
    ],
)
def test_a_member_dies_in_a_round(swarm: ProcessSwarm, point: str, fault_seed: int) -> None:
    """The survivor commits or discards; it never holds a round that the log does not have."""
    rng = random.Random(f"{fault_seed} {point}")
    uid, pid = victim(swarm, rng.choice(["front", "back"]), rng)
    began = dies(swarm, pid, point, rng.randrange(1, 4))
    told = until(lambda: died(swarm, uid, began), "the client's event")
    assert len(told) == 1
    stage = uid.partition(".")[0]
    rounds = [r for r in swarm.records("client.jsonl", "round") if r["stage"] == stage and r["time"] > began]
    print("rounds meanwhile:", [(r["round"], r["committed"], r["members"]) for r in rounds])
    said_once(swarm, pid)
    heals(swarm, told[0]["time"])


@pytest.mark.parametrize("point", [pytest.param("round.before_log", marks=slow), "round.after_log"])
def test_the_client_dies_around_its_log_write(swarm: ProcessSwarm, point: str, fault_seed: int) -> None:
    """What is in the log holds for everybody, what is not is redone: members ask until they know."""
    rng = random.Random(f"{fault_seed} {point}")
    pid, servers = swarm.pid("client"), swarm.pids("server")
    began = dies(swarm, pid, point, rng.randrange(1, 5))
    last = swarm.log_entries("round")[-1]
    until(lambda: len(swarm.pids("trainer")) == 2 and swarm.pid("client") != pid, "the client is back")
    heals(swarm, time.time())
    assert swarm.pids("server") == servers, "servers keep their state"
    following = [e for e in swarm.log_entries("round") if e["stage"] == last["stage"]]
    assert [e["digest"] for e in following if e["round"] == last["round"]] == [last["digest"]]
    print(f"{last['stage']} round {last['round']} was the last before, {time.time() - began:.1f} s ago")


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("checkpoint.temp_file", marks=slow),
        pytest.param("checkpoint.fsync", marks=slow),
        "checkpoint.manifest",
        pytest.param("checkpoint.rename", marks=slow),
    ],
)
def test_a_server_dies_while_it_writes_a_checkpoint(swarm: ProcessSwarm, point: str, fault_seed: int) -> None:
    """Whatever is under the right name is whole; what was half written is gone once another writes."""
    rng = random.Random(f"{fault_seed} {point}")
    _, pid = victim(swarm, rng.choice(["front", "back"]), rng)
    dies(swarm, pid, point, rng.randrange(1, 6))
    whole_ones = 0
    for entry in CheckpointStore(swarm.checkpoints, "mlp").rounds():
        assert not entry.broken, entry.broken
        whole_ones += len(entry.manifests)
    assert whole_ones >= 2
    said_once(swarm, pid)
    heals(swarm, time.time())
    check(swarm)
