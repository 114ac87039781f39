"""A server that nobody can newly connect to: it gets no slot, or loses it, and its owner is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.failover.memory_scene import mlp
from tests.failover.network_scene import NetworkSwarm, quiet_titles, until

from distqat.distributed.coordination import reachability
from distqat.distributed.network import unreachable_peers
from distqat.errors import Unreachable

pytestmark = [pytest.mark.timeout(90), pytest.mark.enable_socket, pytest.mark.faults]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_titles(monkeypatch)
    monkeypatch.setattr(reachability, "PATIENCE_S", 1.0)
    monkeypatch.setattr(reachability, "LOOK_S", 0.2)
    monkeypatch.setattr(unreachable_peers, "EVERY_S", 0.2)


async def ends(swarm: NetworkSwarm, name: str) -> str:
    """With which sentence a server ends by itself."""
    with pytest.raises(Unreachable) as refused:
        await asyncio.wait_for(swarm._running.pop(name), 30.0)
    return str(refused.value)


async def test_behind_a_router(tmp_path: Path) -> None:
    async with NetworkSwarm(
        mlp(inner_steps=10, outer_steps=100000), tmp_path, replicas=1, trainers=1
    ) as swarm:
        swarm.network.walled.add("server2")
        await swarm.add_server(2)
        assert "this server gets no slot: nobody can connect to it" in await ends(swarm, "server2")
        assert swarm.holder_of("server2") is None
        swarm.network.walled.clear()
        await swarm.add_server(3)
        await until(lambda: swarm.holder_of("server3"), "a slot for one that can be reached")


async def test_a_router_closes_while_it_serves(tmp_path: Path) -> None:
    async with NetworkSwarm(mlp(inner_steps=10, outer_steps=100000), tmp_path) as swarm:
        name = swarm.at("front.0.0.0")
        swarm.network.walled.add(name)
        await swarm.add_trainer(2)  # one that has no connection yet
        said = await ends(swarm, name)
        assert "front.0.0.0 loses its slot: nobody can connect to it from outside" in said
        before = swarm.committed("front")
        await until(lambda: swarm.committed("front") >= before + 2, "the others go on")
        swarm.check()
