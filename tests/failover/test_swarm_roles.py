"""Rows 6, 7 and 15 of the fault table: deaths of every role and of its daemon; a server that leaves."""

from __future__ import annotations

import random
import re
import signal
import sys
import time
from collections import defaultdict

import psutil
import pytest
from tests.failover.invariants import aborted, died, heals, lost, whole
from tests.failover.process_swarm import STAGES, ProcessSwarm, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles and their daemons in /proc"),
    pytest.mark.timeout(400),
]


def log_of(swarm: ProcessSwarm, pattern: str) -> str:
    return "".join(path.read_text() for path in sorted(swarm.logs.glob(pattern)))


def successor(swarm: ProcessSwarm, name: str, old: list[int]) -> int:
    """The process that took over, and not before the launcher could have started it."""
    return until(lambda: next(iter(set(swarm.pids(name)) - set(old)), None), f"another {name}")


def test_a_server_dies(swarm: ProcessSwarm, fault_seed: int) -> None:
    """At any moment: its pipeline goes on over the other replica, a new process takes its slot and state."""
    uid = f"{random.Random(fault_seed).choice(STAGES)}.0.0.0"
    until(lambda: swarm.steps(time.time() - 1, through=uid), f"a step through {uid}")
    pid, servers = swarm.pid(f"server {uid}"), set(swarm.pids("server"))
    affected = swarm.steps(through=uid)[-1]["pipeline"]
    killed = swarm.kill(pid)
    print(f"kill -> next applied step of its pipeline: {swarm.next_step(killed, affected):.3f} s")
    until(
        lambda: f"(PID {pid}) ended with SIGKILL: starting again" in swarm.all_said(), "the launcher saw it"
    )
    until(lambda: died(swarm, uid, killed), "so did the client")
    # From a replica; or from disk, where the dead one alone had taken part in the last round.
    took = re.compile(rf"{re.escape(uid)} (took|restored) round ")
    until(lambda: took.search(log_of(swarm, "server_*.log")), f"{uid} has the committed state")
    heals(swarm, killed)
    assert servers - {pid} <= set(swarm.pids("server"))  # the healthy were left alone


@pytest.mark.slow
def test_a_trainer_dies(swarm: ProcessSwarm, fault_seed: int) -> None:
    servers, trainers = swarm.pids("server"), swarm.pids("trainer")
    victim = random.Random(fault_seed).choice(trainers)
    killed = swarm.kill(victim)
    new = successor(swarm, "trainer", trainers)
    print(f"trainer {victim} -> {new}; next step of any {swarm.next_step(killed):.2f} s")
    heals(swarm, killed)
    assert swarm.pids("server") == servers
    assert log_of(swarm, "client.log").count(f"(PID {victim}) ended with SIGKILL: starting again") == 1


@pytest.mark.slow
def test_the_data_server_dies(swarm: ProcessSwarm, fault_seed: int) -> None:
    """Its trainers wait for the next one, or end with it and are started again."""
    servers, data = swarm.pids("server"), swarm.pid("data-server")
    killed = swarm.kill(data)
    successor(swarm, "data-server", [data])
    print(f"data server: next step after {swarm.next_step(killed):.2f} s")
    heals(swarm, killed)
    assert swarm.pids("server") == servers
    assert log_of(swarm, "client.log").count(f"(PID {data}) ended with SIGKILL: starting again") == 1


def test_the_client_dies(swarm: ProcessSwarm, fault_seed: int) -> None:
    """Its children end with it; servers keep their state, and the next client goes on from its log."""
    children = [*swarm.pids("trainer"), *swarm.pids("data-server")]
    assert len(children) == 3
    servers = swarm.pids("server")
    before = {stage: swarm.committed(stage) for stage in STAGES}
    killed = swarm.kill(swarm.pid("client"))
    began = time.monotonic()
    until(lambda: not swarm.alive(children), "its trainers and its data server ended", 2.0)
    print(f"the client's children ended {time.monotonic() - began:.2f} s after it")
    assert swarm.pids("server") == servers
    heals(swarm, killed)
    print(f"next step {swarm.next_step(killed):.2f} s after it died")
    assert swarm.pids("server") == servers, "they keep their state"
    assert all(swarm.committed(stage) > before[stage] for stage in STAGES)
    assert "restart" not in {entry["kind"] for entry in swarm.log_entries("restart")}


@pytest.mark.parametrize(
    "role",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("server", "trainer", "client", "monitor")],
)
def test_the_daemon_of_a_role_dies(swarm: ProcessSwarm, role: str, fault_seed: int) -> None:
    """A role without its p2pd is deaf: it ends with an error and is started again."""
    pid = random.Random(fault_seed).choice(swarm.pids(role))
    daemons = [child.pid for child in psutil.Process(pid).children() if "p2pd" in child.name()]
    assert len(daemons) == 1
    killed = swarm.kill(daemons[0])
    says = re.compile(rf"\(PID {pid}\) ended with code [1-9]\d*: starting again")
    place = {"server": lambda: swarm.all_said(), "trainer": lambda: log_of(swarm, "client.log")}
    until(lambda: says.search(place.get(role, lambda: swarm.said(0))()), "it ends and is started again")
    print(f"started again {time.time() - killed:.2f} s after its daemon died")
    heals(swarm, killed)


@pytest.mark.slow
def test_the_monitor_dies(swarm: ProcessSwarm, fault_seed: int) -> None:
    """Training goes on, others join through any peer, and the next monitor counts nothing twice."""
    servers = swarm.pids("server")
    found = re.findall(
        r"Found expert \S+ at (/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+)", log_of(swarm, "client.log")
    )
    old = swarm.pid("monitor")
    killed = swarm.kill(old)
    print(f"next step {swarm.next_step(killed):.2f} s after the monitor died")
    number = swarm.add_servers(1, peers=found[-1])  # the newest: nobody restarted it since
    until(lambda: len(swarm.pids("server")) == 5, "a fifth server, through another peer")
    (new,) = set(swarm.pids("server")) - set(servers)
    uid = until(lambda: re.search(r"server (\w+\.0\.\d+\.0)", _title(new)), "its slot")[1]
    until(lambda: swarm.steps(killed, through=uid), "a step through it")
    successor(swarm, "monitor", [old])
    counted_once(swarm, since=time.time())
    swarm.launcher(number).terminate()
    assert swarm.launcher(number).wait(timeout=20) == 0
    heals(swarm, time.time())


def counted_once(swarm: ProcessSwarm, since: float) -> None:
    """What the monitor writes of a server after its own restart goes on from before: the server's count."""
    of_servers = until(
        lambda: [r for r in swarm.records("monitor.jsonl", "server") if r["time"] > since], "its records"
    )
    assert {r["uid"] for r in of_servers} <= {f"{s}.0.{i}.0" for s in STAGES for i in range(3)}
    for uid in {f"{stage}.0.{index}.0" for stage in STAGES for index in range(2)}:
        series = [r for r in swarm.records("monitor.jsonl", "server") if r["uid"] == uid]
        own = max(r["server_samples"] for r in swarm.records("server_*.jsonl", "round") if r["uid"] == uid)
        assert all(r["samples"] <= own + 32 * 200 for r in series)
        moments = [r["time"] for r in series]
        assert len(moments) == len(set(moments))


def test_a_server_is_asked_to_leave(swarm: ProcessSwarm, fault_seed: int) -> None:
    """SIGTERM: it ends its step, writes its checkpoint, withdraws and ends with 0; nobody counts a death."""
    uid = f"{random.Random(fault_seed).choice(STAGES)}.0.1.0"
    pid = swarm.pid(f"server {uid}")
    asked = swarm.kill(pid, signal.SIGTERM)
    until(
        lambda: re.search(rf"\(PID {pid}\) ended with code 0", swarm.all_said()), "it left with code 0", 10.0
    )
    left = time.time()
    print(f"left {left - asked:.2f} s after SIGTERM; next step {swarm.next_step(asked):.2f} s")
    assert not lost(swarm, uid, asked), "a step that it had begun is finished or aborted"
    assert not died(swarm, uid, asked)
    rerun = aborted(swarm, uid, asked)
    print("run again:", [(event["code"], event["reason"][:60]) for event in rerun])
    assert len(rerun) <= 2, "at most one attempt of each trainer"
    before = {stage: swarm.committed(stage) for stage in STAGES}
    until(lambda: all(swarm.committed(s) > before[s] + 1 for s in STAGES), "the others go on")
    assert not swarm.steps(left + 1, through=uid), "nobody routes over it"
    swarm.add_servers(1)
    heals(swarm, time.time())
    closed = defaultdict(int)
    for record in swarm.records("server_*.jsonl", "closed"):
        closed[record["peer"]] += 1
    assert set(closed.values()) == {1}
    assert whole(swarm, left)


def _title(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())
