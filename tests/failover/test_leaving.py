"""Row 15 of the fault table: roles and launchers leave in order when asked once, at once when asked twice."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.failover.invariants import heals
from tests.failover.process_swarm import ProcessSwarm, until

from distqat.checkpoint import CheckpointStore

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles in /proc"),
    pytest.mark.timeout(400),
]
IN_ORDER_S, AT_ONCE_S = 10.0, 2.0


def leaves(swarm: ProcessSwarm, pid: int, log: Path) -> None:
    """SIGTERM to a role; whoever keeps it says that it ended with 0."""
    asked = time.monotonic()
    swarm.kill(pid, signal.SIGTERM)
    until(lambda: f"(PID {pid}) ended with code 0: finished" in log.read_text(), "code 0", IN_ORDER_S)
    print(f"PID {pid} left in {time.monotonic() - asked:.2f} s")


def test_every_role_and_launcher_leaves_in_order(tmp_path: Path) -> None:
    with ProcessSwarm(tmp_path) as swarm:
        launcher, client = tmp_path / "launcher_0.txt", swarm.logs / "client.log"
        leaves(swarm, swarm.pids("trainer")[1], client)
        steps = len(swarm.steps())
        until(lambda: len(swarm.steps()) > steps + 10, "the other trainer goes on")
        leaves(swarm, swarm.pid("monitor"), launcher)
        steps = len(swarm.steps())
        until(lambda: len(swarm.steps()) > steps + 10, "training goes on without the monitor")
        newest = {stage: swarm.committed(stage) for stage in ("front", "back")}
        for number in (1, 0):  # the servers, then the client with what it keeps
            asked = time.monotonic()
            swarm.launcher(number).send_signal(signal.SIGINT)
            assert swarm.launcher(number).wait(timeout=IN_ORDER_S) == 0
            print(f"launcher {number} left in {time.monotonic() - asked:.2f} s")
        ends = re.findall(r"ended with (code \d+|SIG\w+): stopped", swarm.said(1))
        assert ends == ["code 0"] * 4
    on_disk = {
        stage: max(
            e.round for e in CheckpointStore(swarm.checkpoints, "mlp").rounds() if stage in e.manifests
        )
        for stage in newest
    }
    assert all(on_disk[stage] >= newest[stage] for stage in newest), (on_disk, newest)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 0], ids=["servers", "trainer-client"])
def test_the_second_ctrl_c_ends_at_once(tmp_path: Path, number: int) -> None:
    """One of its roles is stopped and does not answer, so that the first Ctrl-C alone would take a while."""
    with ProcessSwarm(tmp_path) as swarm:
        swarm.kill(swarm.pids("server" if number == 1 else "client")[0], signal.SIGSTOP)
        mine = psutil.Process(swarm.launcher(number).pid).children(recursive=True)
        swarm.launcher(number).send_signal(signal.SIGINT)
        until(lambda: "once more to leave at once" in swarm.said(number), "the first is heard")
        asked = time.monotonic()
        swarm.launcher(number).send_signal(signal.SIGINT)
        swarm.expect(number, 130)
        assert swarm.launcher(number).wait(timeout=AT_ONCE_S) == 130
        until(lambda: not swarm.alive([p.pid for p in mine if p.pid in swarm.seen]), "all ended", AT_ONCE_S)
        swarm.sweeps = True
        print(f"out {time.monotonic() - asked:.2f} s after the second")
    # Files of sockets that nobody holds any more are left by whoever was killed; the next start sweeps them.


def test_the_second_sigterm_ends_a_role_at_once(tmp_path: Path) -> None:
    """A server that says goodbye to a client that is stopped waits for it, unless it is asked twice."""
    with ProcessSwarm(tmp_path) as swarm:
        pid, client = swarm.pids("server")[0], swarm.pid("client")
        swarm.kill(client, signal.SIGSTOP)
        swarm.kill(pid, signal.SIGTERM)
        heard = time.monotonic()
        until(lambda: "once more to leave at once" in logs(swarm), "the first is heard")
        until(lambda: time.monotonic() - heard > 0.7, "not the same gesture any more")
        asked = time.monotonic()
        swarm.kill(pid, signal.SIGTERM)
        until(lambda: not swarm.alive([pid]), "it is out", AT_ONCE_S)
        print(f"out {time.monotonic() - asked:.2f} s after the second")
        swarm.kill(client, signal.SIGCONT)
        until(
            lambda: f"(PID {pid}) ended with code 130: starting again" in swarm.said(1), "that was no leave"
        )
        heals(swarm, time.time())


def logs(swarm: ProcessSwarm) -> str:
    return "".join(path.read_text() for path in swarm.logs.glob("server_*.log"))
