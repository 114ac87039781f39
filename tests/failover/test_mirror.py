"""Row 20 of the fault table without any disk: a lost stage comes back from the client's mirror."""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from tests.failover.invariants import heals
from tests.failover.process_swarm import STAGES, ProcessSwarm, until

from distqat.checkpoint import CheckpointStore

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles in /proc"),
    pytest.mark.timeout(300),
    pytest.mark.faults,
]


class Elsewhere(ProcessSwarm):
    """Servers keep their checkpoints in another folder than the client, as on another host."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, flags=("--param-mirror-refresh-every=1",))
        self.disk = folder / "servers"

    def launch(self, script: str, *flags: str) -> int:
        own = (f"--param-mirror-checkpoint-dir={self.disk}",) if script == "start_servers.py" else ()
        return super().launch(script, *flags, *own)


def mirrored(swarm: ProcessSwarm, stage: str) -> dict[int, str]:
    """Rounds of a stage in the client's folder, with their digests."""
    rounds = CheckpointStore(swarm.checkpoints, "mlp").rounds()
    return {entry.round: entry.manifests[stage].digest for entry in rounds if stage in entry.manifests}


def test_a_stage_whose_disks_are_gone_is_restored_from_the_mirror(tmp_path: Path) -> None:
    with Elsewhere(tmp_path) as swarm:
        until(lambda: all(max(mirrored(swarm, stage), default=0) >= 2 for stage in STAGES), "a mirror")
        killed = [swarm.pid(f"server front.0.{index}.0") for index in range(2)]
        for pid in killed:
            lost_at = swarm.kill(pid)
        until(lambda: not swarm.alive(killed), "both replicas died")
        for shard in swarm.disk.glob("*/front"):
            shutil.rmtree(shard)
        copies = mirrored(swarm, "front")
        client = swarm.logs / "client.log"
        lost = re.compile(r"stage front was lost and goes on from round (\d+), generation (\d+)")
        said = until(lambda: lost.search(client.read_text()), "the stage is restored", 90)
        (restored,) = [
            match
            for path in swarm.logs.glob("server_*.log")
            for match in re.findall(r"(\S+) restored round (\d+) from the client's mirror", path.read_text())
        ]
        number = int(said[1])
        print(f"{restored[0]} has round {number} again {time.time() - lost_at:.1f} s after the loss")
        assert int(restored[1]) == number == max(copies) >= 2
        (entry,) = swarm.log_entries("restart")
        assert (entry["stage"], entry["digest"]) == ("front", copies[number])
        print(f"next step {swarm.next_step(lost_at):.1f} s after the loss")
        heals(swarm, lost_at)
