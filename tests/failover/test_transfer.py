"""Row 5 of the fault table: a donor, and a joiner, die while a state goes from one to the other."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.failover.invariants import check
from tests.failover.process_swarm import ROOT, STAGES, START_S, ProcessSwarm, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles in /proc"),
    pytest.mark.timeout(400),
    pytest.mark.faults,
]
TOOK = re.compile(r"(\w+\.0\.\d+\.0) took round (\d+), ([\d.]+) MB, in ([\d.]+) s from (.*)")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessSwarm]:
    """Two replicas of two stages whose states take several chunks."""
    folder = tmp_path_factory.mktemp("transfer")
    config = (ROOT / "configs/mlp.yaml").read_text()
    larger = config.replace("num_classes: 10}", "num_classes: 10, hidden: 640, depth: 4}")
    assert larger.count("depth") == 2
    (folder / "large.yaml").write_text(larger)
    flags = (f"--config-path={folder / 'large.yaml'}", "--no-param-mirror-enable")  # it fetches, too
    with ProcessSwarm(folder, flags=flags) as swarm:
        yield swarm


def taken(swarm: ProcessSwarm) -> list[tuple[str, str]]:
    """Who took a state, and from whom, by server; in no order."""
    found = []
    for path in sorted(swarm.logs.glob("server_*.log")):
        found += [(match[1], match[5]) for match in TOOK.finditer(path.read_text())]
    return found


def newly_taken(swarm: ProcessSwarm, before: list[tuple[str, str]], uid: str = "") -> tuple[str, str] | None:
    """The first of those who took a state since `before`, or a certain one of them."""
    new = Counter(taken(swarm)) - Counter(before)
    return next((entry for entry in new if uid in entry[0]), None)


def said(swarm: ProcessSwarm, text: str) -> bool:
    return any(text in path.read_text() for path in swarm.logs.glob("server_*.log"))


def goes_on(swarm: ProcessSwarm, since: float) -> None:
    """Steps on both pipelines, and rounds of both stages; what anybody holds is what was committed."""
    until(lambda: {s["pipeline"] for s in swarm.steps(since)} >= {0, 1}, "steps of both trainers")
    before = {stage: swarm.committed(stage) for stage in STAGES}
    until(lambda: all(swarm.committed(s) >= before[s] + 2 for s in STAGES), "two more rounds", 90)
    check(swarm)


def test_a_donor_dies_and_the_next_one_goes_on(large: ProcessSwarm) -> None:
    donors = {stage: large.pid(f"server {stage}.0.0.0") for stage in STAGES}
    for pid in donors.values():
        large.arm(pid, "donor.chunk:kill9@1")
    before, began = taken(large), time.time()
    large.add_servers(1)
    until(lambda: any(large.fired(pid) for pid in donors.values()), "a donor died in a chunk", START_S)
    joiner, givers = until(lambda: newly_taken(large, before, ".0.2.0"), "the joiner has the state")
    print(f"{joiner} has its state from {givers}")
    for pid in donors.values():
        large.arm(pid, "nowhere:error")  # the donor of the other stage lives on
    stage = joiner.partition(".")[0]
    assert large.fired(donors[stage])
    assert f"{stage}.0.1.0" in givers.split(", ")
    assert said(large, f"from {stage}.0.0.0: "), "why it was set aside"
    until(lambda: said(large, f"{joiner} serves from round"), "the joiner serves")
    goes_on(large, began)


def test_a_joiner_dies_and_its_successor_begins_again(large: ProcessSwarm) -> None:
    number = large.add_servers(1)
    line = re.compile(r"started: PID (\d+), port \d+, log (\S+)")
    started = until(lambda: line.search(large.said(number)), "the joiner is there", START_S)
    pid, log = int(started[1]), Path(started[2])
    until(lambda: pid in large.pids("server"), "it is a server")
    large.arm(pid, "join.chunk:kill9@3")
    until(lambda: large.fired(pid) and not large.alive([pid]), "it died between two chunks", START_S)
    killed = time.time()
    assert not TOOK.search(log.read_text()), "it had no whole state"
    until(lambda: f"(PID {pid}) ended with SIGKILL" in large.said(number), "its launcher says so")
    joiner = until(lambda: TOOK.search(log.read_text()), "its successor has the state")[1]
    print(f"{joiner} has its state {time.time() - killed:.2f} s after the death")
    until(lambda: f"{joiner} serves from round" in log.read_text(), "it serves")
    goes_on(large, killed)
