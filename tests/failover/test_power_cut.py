"""Row 21 of the fault table: a power cut of the whole cluster, started again with the documented commands."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from tests.failover.invariants import check, whole
from tests.failover.process_swarm import STAGES, START_S, ProcessSwarm, until

from distqat.checkpoint import CheckpointStore

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles in /proc"),
    pytest.mark.timeout(400),
    pytest.mark.slow,
]


def test_a_power_cut_of_the_whole_cluster(tmp_path: Path, fault_seed: int) -> None:
    """Every process dies at the same moment; the same two commands go on from what is on disk."""
    with ProcessSwarm(tmp_path) as swarm:
        wanted = 3 + fault_seed % 5
        until(lambda: all(swarm.committed(stage) >= wanted for stage in STAGES), "some rounds", START_S)
        swarm.power_cut()
        cut, began = time.time(), time.monotonic()
        reached = {entry["stage"]: entry["round"] for entry in swarm.log_entries("round")}
        on_disk = {
            stage: max(
                e.round for e in CheckpointStore(swarm.checkpoints, "mlp").rounds() if stage in e.manifests
            )
            for stage in STAGES
        }
        swarm.start_again()
        until(lambda: swarm.steps(cut), "a step", START_S)
        print(
            f"first step {time.monotonic() - began:.1f} s after the start; before {reached}, disk {on_disk}"
        )
        restarts = {e["stage"]: e["round"] for e in swarm.log_entries("restart")}
        assert restarts == on_disk, "each stage goes on from its newest checkpoint"
        assert all(reached[stage] - restarts[stage] <= 2 for stage in STAGES), "nearly nothing is lost"
        until(lambda: whole(swarm, cut), "the swarm is whole again", START_S)
        check(swarm)
