"""What the client decides is what servers do, whatever they were started with, and after its restart too."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.failover.memory_scene import mlp
from tests.failover.network_scene import NetworkSwarm, quiet_titles, until

from distqat.config import Config
from distqat.distributed.serving.replica import StageReplica

pytestmark = [pytest.mark.timeout(90), pytest.mark.enable_socket]
RATE, LATER = "diloco.inner_optim.adam_lr", 5e-4


def run(outer_steps: int, adam_lr: float = 2e-3) -> Config:
    inner = {"type": "adam", "adam_lr": adam_lr}
    return mlp(inner_steps=10, outer_steps=outer_steps, inner_optim=inner, averaging_timeout=5.0)


def replicas(swarm: NetworkSwarm) -> list[StageReplica]:
    slots = [swarm.held(name) for name in swarm.servers]
    return [held.served.host.replica for held in slots if held is not None]


def rates(swarm: NetworkSwarm) -> set[float]:
    """With which rate the weights were stepped last."""
    return {float(replica.optimizer.param_groups[0]["lr"]) for replica in replicas(swarm)}


async def test_rounds_go_on_to_the_clients_number_and_a_restarted_client_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quiet_titles(monkeypatch)
    caplog.set_level(logging.INFO)
    servers = run(1, adam_lr=0.1)  # by themselves they would end after the first round
    async with NetworkSwarm(run(3), tmp_path, replicas=1, trainers=1, servers_config=servers) as swarm:
        assert (
            "diloco.outer_steps is 3, as the client of this run says; not 1, as configured here"
            in caplog.text
        )
        await until(lambda: swarm.client.parts.rounds.finished.is_set(), "all rounds of the client")
        assert rates(swarm) == {2e-3}
        held, moments = replicas(swarm), [len(r.optimizer.state) for r in replicas(swarm)]

        await swarm.restart_client(run(6, adam_lr=LATER))
        assert f"changed since the last start: {RATE}: 0.002 -> {LATER} (servers are told)" in caplog.text
        await until(lambda: swarm.client.parts.rounds.finished.is_set(), "three more rounds")
        assert {swarm.committed(stage) for stage in swarm.config.stages} == {6}
        assert rates(swarm) == {LATER}
        assert replicas(swarm) == held  # nobody was started again, and nobody lost its moments
        assert [len(r.optimizer.state) for r in replicas(swarm)] == moments
        said = f"{RATE} is {LATER} from here on, as the client says that was started again; it was 0.002"
        assert caplog.text.count(said) == 2
        swarm.check()
