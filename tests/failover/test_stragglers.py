"""Servers that are slow or stand still: rounds go on without them, steps take another way, they come back."""

from __future__ import annotations

import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
import pytest
from tests.failover.memory_scene import mlp
from tests.failover.network_scene import NetworkSwarm, quiet_titles, until
from tests.failover.process_swarm import STAGES, ProcessSwarm
from tests.failover.process_swarm import until as until_then

pytestmark = [pytest.mark.timeout(240), pytest.mark.enable_socket, pytest.mark.faults]
VICTIM = "front.0.0.0"
SLOWER = 10


@pytest.fixture(autouse=True)
def titles(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_titles(monkeypatch)


async def test_a_straggler_does_not_hold_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica computes ten times slower: rounds take at most half as long again, with or without it."""
    async with NetworkSwarm(mlp(inner_steps=10, outer_steps=100000), tmp_path) as running:
        name = running.at(VICTIM)
        before = running.committed("front")
        await until(lambda: running.committed("front") >= before + 5, "undisturbed rounds")
        undisturbed = spacing(running, 0.0)
        held = running.held(name)
        assert held is not None
        normal = median(held.served.steps.tally.step_seconds)
        replica, slowed = held.served.host.replica, []
        forward = replica.forward

        def slowly(*given: object) -> object:
            slowed.append(time.monotonic())
            time.sleep(SLOWER * normal / 3)  # on the compute thread; a step has three microbatches
            return forward(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(replica, "forward", slowly)
        began = time.monotonic()
        before = running.committed("front")
        await until(lambda: running.committed("front") >= before + 8, "rounds beside the straggler", 60.0)
        disturbed = spacing(running, began)
        print(
            f"a round every {undisturbed:.2f} s, beside a straggler every {disturbed:.2f} s: "
            f"{disturbed / undisturbed:.2f} times (goal 1.5); its step was {normal:.2f} s"
        )
        assert slowed
        assert running.holder_of(name) == VICTIM  # slow is not dead
        monkeypatch.undo()
        quiet_titles(monkeypatch)
        await running.all_agree(time.monotonic(), 30.0)
        running.check()


def spacing(running: NetworkSwarm, since: float) -> float:
    """Median seconds from one committed round to the next."""
    ends = [record["at"] for record in running.rounds("front") if record["at"] > since]
    return median(b - a for a, b in pairwise(ends))


@pytest.mark.skipif(sys.platform != "linux", reason="stops processes that it finds in /proc")
@pytest.mark.parametrize("seconds", [12, pytest.param(30, marks=pytest.mark.slow)])
def test_a_server_is_stopped_for_a_while(tmp_path: Path, seconds: int) -> None:
    """SIGSTOP to a server and its daemon, SIGCONT later: it must notice by itself that it was away."""
    with ProcessSwarm(tmp_path) as swarm:
        until_then(lambda: all(swarm.together(stage) for stage in STAGES), "rounds with all members")
        until_then(lambda: swarm.steps(time.time() - 1, through=VICTIM), f"a step through {VICTIM}")
        affected = swarm.steps(through=VICTIM)[-1]["pipeline"]
        pid = swarm.pid(f"server {VICTIM}")
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        swarm.processes()
        stopped = time.time()
        for each in family:
            swarm.kill(each, signal.SIGSTOP)
        try:
            assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
            took = swarm.next_step(stopped, affected)
            print(f"SIGSTOP -> next applied step of its pipeline: {took:.2f} s (goal 3 s)")
            before = swarm.committed("front")
            until_then(lambda: swarm.committed("front") >= before + 2, "rounds without it", 30.0)
            assert not swarm.together("front")
            until_then(lambda: time.time() > stopped + seconds, "it was away for long enough", seconds)
            assert not swarm.steps(stopped + 4, through=VICTIM)
        finally:
            for each in reversed(family):
                swarm.kill(each, signal.SIGCONT)
        continued = time.time()
        newest = swarm.committed("front")

        def returned() -> float | None:
            rounds = swarm.records("server_*.jsonl", "round")
            own = [r for r in rounds if r["time"] > continued and r["uid"] == VICTIM and r["committed"]]
            return own[0]["time"] if own and own[0]["round"] > newest else None

        took = until_then(returned, "it takes part in a round after the newest") - continued
        print(f"SIGCONT -> its next committed round: {took:.2f} s (goal 10 s)")
        assert swarm.pid(f"server {VICTIM}") == pid  # it was never restarted
        swarm.goes_on()
