"""Deaths of every role in a swarm of real processes: training goes on, nothing is left behind."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.failover.process_swarm import STAGES, ProcessSwarm, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles and their daemons in /proc"),
    pytest.mark.timeout(240),
]
VICTIM = "front.0.0.0"


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[ProcessSwarm]:
    with ProcessSwarm(tmp_path) as running:
        yield running


def server_log(swarm: ProcessSwarm, text: str) -> bool:
    return any(text in path.read_text() for path in swarm.logs.glob("server_*.log"))


def rejoins(swarm: ProcessSwarm, uid: str, old_pid: int, since: float) -> None:
    """A new process holds the slot, took the committed state and serves steps again."""
    until(lambda: [p for p in swarm.pids(f"server {uid}") if p != old_pid], f"a new process of {uid}")
    # From a replica; or from disk, where the dead one alone had taken part in the last round.
    until(
        lambda: server_log(swarm, f"{uid} took round ") or server_log(swarm, f"{uid} restored round "),
        f"{uid} has the committed state",
    )
    joined = time.time()
    until(lambda: swarm.steps(joined, through=uid), f"a step through {uid}")
    print(f"{uid} serves again {swarm.steps(joined, through=uid)[0]['time'] - since:.2f} s after the fault")


def test_a_server_dies(swarm: ProcessSwarm) -> None:
    until(lambda: swarm.steps(time.time() - 1, through=VICTIM), f"a step through {VICTIM}")
    pid, servers = swarm.pid(f"server {VICTIM}"), set(swarm.pids("server"))
    affected = swarm.steps(through=VICTIM)[-1]["pipeline"]
    killed = swarm.kill(pid)
    took = swarm.next_step(killed, affected)
    print(f"kill -> next applied step of its pipeline: {took:.3f} s")
    until(lambda: "ended with SIGKILL: starting again" in swarm.said(1), "the launcher saw the death")
    rejoins(swarm, VICTIM, pid, since=killed)
    assert servers - {pid} <= set(swarm.pids("server"))  # the healthy were left alone
    swarm.goes_on()
    steps = swarm.steps()
    assert all(step["route"] for step in steps)
    ids = [(s["pipeline"], s["step"]) for s in steps]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_a_trainer_and_the_data_server_die(swarm: ProcessSwarm) -> None:
    servers = swarm.pids("server")
    trainers = swarm.pids("trainer")
    killed = swarm.kill(trainers[0])
    new = until(lambda: set(swarm.pids("trainer")) - set(trainers), "a new trainer")
    until(lambda: len(swarm.pids("trainer")) == 2, "both trainers")
    print(f"trainer {trainers[0]} -> {new}; next step of any {swarm.next_step(killed):.2f} s")
    both = {0, 1}
    until(lambda: {s["pipeline"] for s in swarm.steps(time.time() - 2)} == both, "steps of both trainers")
    data = swarm.pid("data-server")
    killed = swarm.kill(data)
    until(lambda: [p for p in swarm.pids("data-server") if p != data], "a new data server")
    until(lambda: {s["pipeline"] for s in swarm.steps(killed + 2)} == both, "steps of both trainers")
    print(f"data server: next step after {swarm.next_step(killed):.2f} s")
    assert swarm.pids("server") == servers
    swarm.goes_on()


def test_the_client_dies(tmp_path: Path) -> None:
    with ProcessSwarm(tmp_path) as swarm:
        children = [*swarm.pids("trainer"), *swarm.pids("data-server")]
        assert len(children) == 3
        servers = swarm.pids("server")
        swarm.kill(swarm.pid("client"))
        began = time.monotonic()
        until(lambda: not swarm.alive(children), "its trainers and its data server ended", 2.0)
        print(f"the client's children ended {time.monotonic() - began:.2f} s after it")
        assert swarm.pids("server") == servers  # they keep their state
        before = {stage: swarm.committed(stage) for stage in STAGES}
        until(lambda: len(swarm.pids("trainer")) == 2, "a restarted client with its trainers")
        until(lambda: all(swarm.committed(s) > before[s] for s in STAGES), "rounds after the restart")
        assert swarm.pids("server") == servers
        swarm.goes_on()


@pytest.mark.slow
def test_the_daemon_of_a_server_dies(swarm: ProcessSwarm) -> None:
    pid = swarm.pid(f"server {VICTIM}")
    daemons = [child.pid for child in psutil.Process(pid).children() if "p2pd" in child.name()]
    assert len(daemons) == 1
    killed = swarm.kill(daemons[0])
    until(lambda: re.search(rf"\(PID {pid}\) ended with code [1-9]\d*: starting again", swarm.said(1)),
          "the role ended with an error and is started again")  # fmt: skip
    rejoins(swarm, VICTIM, pid, since=killed)
    swarm.goes_on()


@pytest.mark.slow
def test_the_monitor_dies(swarm: ProcessSwarm) -> None:
    servers = swarm.pids("server")
    log = next(path.read_text() for path in swarm.logs.glob("client.log"))
    peer = re.search(r"Found expert \S+ at (/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+)", log)
    assert peer is not None
    killed = swarm.kill(swarm.pid("monitor"))
    print(f"next step {swarm.next_step(killed):.2f} s after the monitor died")
    number = swarm.add_servers(1, peers=peer[1])
    until(lambda: len(swarm.pids("server")) == 5, "a fifth server, through another peer")
    new = next(iter(set(swarm.pids("server")) - set(servers)))
    uid = until(
        lambda: re.search(r"server (\w+\.0\.\d+\.0)", " ".join(psutil.Process(new).cmdline())), "its slot"
    )
    until(
        lambda: swarm.steps(killed, through=uid[1]) or server_log(swarm, f"{uid[1]} serves from round"),
        "it serves",
    )
    assert swarm.launcher(number).poll() is None
    swarm.check_digests()


@pytest.mark.slow
def test_a_server_is_asked_to_leave(swarm: ProcessSwarm) -> None:
    pid = swarm.pid(f"server {VICTIM}")
    asked = swarm.kill(pid, signal.SIGTERM)
    until(lambda: re.search(rf"\(PID {pid}\) ended with code 0", swarm.said(1)), "it left with code 0", 10.0)
    print(f"left {time.time() - asked:.2f} s after SIGTERM; next step {swarm.next_step(asked):.2f} s")
    before = {stage: swarm.committed(stage) for stage in STAGES}
    until(lambda: all(swarm.committed(s) > before[s] + 1 for s in STAGES), "more rounds")
    swarm.check_digests()
