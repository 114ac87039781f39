"""Row 14 of the fault table: a machine whose clock is off joins a running swarm, or is told by how much."""

from __future__ import annotations

import re
import shutil
import sys
import time

import pytest
from tests.failover.invariants import check
from tests.failover.process_swarm import ROOT, ProcessSwarm, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles in /proc"),
    pytest.mark.timeout(400),
]
SKEWED = str(ROOT / "tests/failover/skewed.py")


@pytest.mark.parametrize("module", ["server", pytest.param("client", marks=pytest.mark.slow)])
@pytest.mark.parametrize("offset", [5, -5, 3600, pytest.param(-3600, marks=pytest.mark.slow)])
def test_beyond_the_bound_one_sentence_names_the_skew(swarm: ProcessSwarm, offset: int, module: str) -> None:
    began = time.monotonic()
    flags = ("--server-base-port=0", "--client-port=0", f"--initial-peers={swarm.peers}")
    role = (sys.executable, SKEWED, str(offset), f"distqat.distributed.{module}")
    number = swarm.start([*role, *swarm.settings, *flags], code=2)
    assert swarm.launcher(number).wait(timeout=240) == 2
    sentence = (
        rf"distqat {module}: the clock of this machine is ([\d.]+) s (ahead of|behind) that of the initial"
    )
    said = re.findall(sentence, swarm.said(number))
    assert len(said) == 1, swarm.said(number)
    assert abs(float(said[0][0]) - abs(offset)) < 1.0
    assert said[0][1] == ("ahead of" if offset > 0 else "behind")
    print(f"refused {time.monotonic() - began:.2f} s after its start")
    check(swarm)


@pytest.mark.parametrize("offset", [2, pytest.param(-2, marks=pytest.mark.slow)])
def test_two_seconds_work(swarm: ProcessSwarm, offset: int) -> None:
    flags = ("--server-base-port=0", f"--initial-peers={swarm.peers}")
    role = (sys.executable, SKEWED, str(offset), "distqat.distributed.server")
    number = swarm.start([*role, *swarm.settings, *flags])
    records = f"server_{swarm.launcher(number).pid}.jsonl"
    uid = until(lambda: re.search(r"(\S+) serves from round", swarm.said(number)), "it serves", 150)[1]
    assert uid.endswith(".2.0"), "the fifth server"
    until(
        lambda: sum(r["committed"] for r in swarm.records(records, "round")) >= 2,
        "rounds in which it took part",
    )
    until(lambda: swarm.steps(through=uid), "a step through it")
    swarm.launcher(number).terminate()
    assert swarm.launcher(number).wait(timeout=15) == 0
    check(swarm)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_a_launcher_under_faketime_is_told_once_per_server(swarm: ProcessSwarm) -> None:
    """The real thing: libfaketime under the documented command, with a right monotonic clock."""
    command = ("faketime", "--exclude-monotonic", "-f", "+1h", sys.executable, "start_servers.py")
    flags = ("--num-servers=1", "--server-base-port=0", f"--initial-peers={swarm.peers}")
    number = swarm.start([*command, *swarm.settings, *flags], code=2)
    assert swarm.launcher(number).wait(timeout=240) == 2
    said = swarm.said(number)
    assert len(re.findall(r"the clock of this machine is 3600\.\d s ahead of", said)) == 1, said
    assert "given up" in said
    check(swarm)
