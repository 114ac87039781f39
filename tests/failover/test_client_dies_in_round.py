"""The client dies in the middle of a round, also while inner steps go on: the next one finds all members."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.failover.memory_scene import Fault, arm
from tests.failover.round_scene import CLIENT, RoundSwarm, one_stage

pytestmark = [pytest.mark.timeout(40), pytest.mark.usefixtures("one_thread")]
MEMBER = "full.0.1.0"


OVERLAPPED = [
    "client.ready",
    "round.before_contribute",
    "client.contribute",
    "call.contribution",
    "round.before_vote",
    "client.vote",
    "round.before_merge",
]


@pytest.mark.parametrize(
    ("point", "overlap"),
    [*((point, True) for point in OVERLAPPED), ("client.contribute", False), ("client.vote", False)],
)
async def test_members_survive_the_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str, overlap: bool
) -> None:
    fault = Fault(point, MEMBER, victim=CLIENT, goes_on=not point.startswith("client."))
    async with RoundSwarm(one_stage(overlap=overlap), tmp_path) as swarm:
        assert [record["committed"] for record in await swarm.round(1)] == [True] * 3
        died = asyncio.Event()

        def kill(peer: str) -> None:
            swarm.network.kill(peer)
            died.set()

        passage = arm(monkeypatch, kill, fault)
        swarm.client.passage = passage
        for replica in swarm.replicas:
            replica.passage = passage
        await swarm.steps(2)
        await died.wait()
        await swarm.restart_client()
        await asyncio.gather(*(replica.member.resync() for replica in swarm.replicas))  # as the next beats do
        assert [replica.running.done() for replica in swarm.replicas] == [False] * 3
        for seed in (3, 4, 5):
            await swarm.round(seed)
        assert all(record["committed"] for record in await swarm.round(6))
        await swarm.agreed()
        swarm.check()
