"""Rows 16, 18 and 22 of the fault table: who may not join a running swarm, and two who want one gap."""

from __future__ import annotations

import re
import socket
import sys
import time

import psutil
import pytest
from tests.failover.invariants import check, heals
from tests.failover.process_swarm import ROOT, START_S, ProcessSwarm, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles in /proc"),
    pytest.mark.timeout(400),
]
OTHER_VERSION = str(ROOT / "tests/failover/other_version.py")


def refused(swarm: ProcessSwarm, command: list[str], code: int) -> str:
    """What a process said that came to the swarm and was sent away; nobody else was touched by it."""
    servers, began = swarm.pids("server"), time.monotonic()
    number = swarm.start(command, code=code)
    assert swarm.launcher(number).wait(timeout=240) == code, swarm.said(number)
    print(f"refused {time.monotonic() - began:.2f} s after its start")
    assert swarm.pids("server") == servers
    check(swarm)
    return swarm.said(number)


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--diloco-inner-steps=11", "diloco.inner_steps"),
        pytest.param("--disable-quant", "quant.enabled", marks=pytest.mark.slow),
        pytest.param("--seed=99", "seed", marks=pytest.mark.slow),
        pytest.param("--diloco-outer-optim-sgd-lr=0.123", "outer_optim", marks=pytest.mark.slow),
    ],
)
def test_another_configuration_is_refused_by_its_key(swarm: ProcessSwarm, flag: str, key: str) -> None:
    join = ("--num-servers=1", "--server-base-port=0", f"--initial-peers={swarm.peers}", flag)
    said = refused(swarm, [sys.executable, "start_servers.py", *swarm.settings, *join], code=2)
    (sentence,) = re.findall(r"distqat servers: .*", said)
    assert "the server's settings differ from the run's in " in sentence
    assert key in sentence
    assert said.rstrip().endswith(sentence)
    assert "Traceback" not in said


@pytest.mark.slow
def test_another_protocol_version_is_refused(swarm: ProcessSwarm) -> None:
    role = [sys.executable, OTHER_VERSION, "distqat.distributed.server", *swarm.settings]
    said = refused(swarm, [*role, "--server-base-port=0", f"--initial-peers={swarm.peers}"], code=2)
    (sentence,) = re.findall(r"distqat server: .*", said)
    assert re.search(r"it speaks protocol version \d+, this peer \d+", sentence)


@pytest.mark.parametrize("whose", [pytest.param("leftover", marks=pytest.mark.slow), "stranger"])
def test_a_port_in_use_is_refused_with_its_number_and_pid(swarm: ProcessSwarm, whose: str) -> None:
    """Of a process of ours that another launcher left behind, or of anybody."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port, pids = stranger.getsockname()[1], {psutil.Process().pid}
        if whose == "leftover":
            monitor = swarm.pid("monitor")
            port = int(re.search(r"/tcp/(\d+)/", swarm.peers)[1])
            pids = {monitor, *(child.pid for child in psutil.Process(monitor).children(recursive=True))}
        join = ("--num-servers=1", f"--server-base-port={port}", f"--initial-peers={swarm.peers}")
        said = refused(swarm, [sys.executable, "start_servers.py", *swarm.settings, *join], code=1)
    named = re.search(rf"distqat servers: port {port} is in use by PID (\d+) \(", said)
    assert named is not None, said
    assert int(named[1]) in pids


@pytest.mark.slow
def test_two_servers_want_one_gap(swarm: ProcessSwarm, fault_seed: int) -> None:
    """The slot of a server that is stopped in order: two come at once, each gets a slot of its own."""
    uid = f"front.0.{fault_seed % 2}.0"
    pid = swarm.pid(f"server {uid}")
    numbers = [swarm.add_servers(1), swarm.add_servers(1)]
    swarm.kill(pid)
    until(lambda: len(swarm.pids("server")) == 6, "two more servers, and the successor", START_S)
    until(lambda: len(set(titles(swarm))) == 6, "each has a slot")
    assert len(titles(swarm)) == 6
    epochs = [(grant["uid"], grant["epoch"]) for grant in swarm.log_entries("grant")]
    assert len(epochs) == len(set(epochs)), "one owner per epoch of a slot"
    for number in numbers:
        swarm.launcher(number).terminate()
        assert swarm.launcher(number).wait(timeout=20) == 0
    missing = 4 - len(swarm.pids("server"))
    assert missing == 0
    heals_somewhere(swarm, time.time())


def titles(swarm: ProcessSwarm) -> list[str]:
    found = []
    for pid in swarm.pids("server"):
        slot = re.search(r"server (\w+\.0\.\d+\.0)", " ".join(psutil.Process(pid).cmdline()))
        if slot:
            found.append(slot[1])
    return found


def heals_somewhere(swarm: ProcessSwarm, since: float) -> None:
    """Those that left may have held a low slot: who stays may have been asked to move."""
    until(lambda: {title.partition(".")[0] for title in titles(swarm)} == {"front", "back"}, "both stages")
    heals(swarm, since)
