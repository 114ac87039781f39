"""Whoever looks for a run that is not in its swarm, where others are, is told their names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fakes.memory_directory import MemoryDirectory, MemorySwarm
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.config import load_config
from distqat.distributed import model, monitor
from distqat.distributed.network import other_runs
from distqat.distributed.network.role_peer import RolePeer
from distqat.errors import ConfigError
from distqat.launch import evaluate_command

PEER = "/ip4/127.0.0.1/tcp/1/p2p/QmSomebody"
CONFIG = load_config("configs/mlp.yaml", {"experiment_prefix": "mpl", "initial_peers": [PEER]})
BOUND_S = 20.0


@pytest.fixture(autouse=True)
async def swarm(monkeypatch: pytest.MonkeyPatch) -> MemorySwarm:
    """A swarm with the run `mlp`, in which everybody finds himself who starts a peer."""
    records, network = MemorySwarm(), MemoryNetwork()
    await MemoryDirectory(records, "other", "mlp", ()).announce_role("monitor", "")

    async def stop() -> None:
        return

    async def start(config: Any, **_: Any) -> SimpleNamespace:
        directory = MemoryDirectory(records, "me", config.experiment_prefix, tuple(config.stages))
        return SimpleNamespace(directory=directory, transport=MemoryTransport(network, "me"), stop=stop)

    monkeypatch.setattr(RolePeer, "start", start)
    monkeypatch.setattr(other_runs, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(other_runs, "OTHERS_S", 0.0)
    return records


@pytest.mark.parametrize(
    "look",
    [
        lambda: monitor.watch(CONFIG, asyncio.Event()),
        lambda: evaluate_command._swarm(CONFIG),
        lambda: model.Connection.open(CONFIG, 0, BOUND_S),
    ],
    ids=["monitor --watch", "evaluate", "SwarmModel"],
)
async def test_the_runs_that_are_there_are_named(look: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises(ConfigError, match="there is no run 'mpl' in this swarm, which has 'mlp'; give --exp"):
        await asyncio.wait_for(look(), BOUND_S)


async def test_many_are_not_all_named(swarm: MemorySwarm) -> None:
    for number in range(20):
        await MemoryDirectory(swarm, f"peer{number}", f"run{number}", ()).announce_role("client", "")
    directory = MemoryDirectory(swarm, "me", "resnet", ())
    with pytest.raises(ConfigError, match=r"'run0', .*, \.\.\.; give --experiment-prefix, or"):
        await other_runs.check_run_is_there(directory)


async def test_a_directory_that_does_not_answer_says_nothing_of_other_runs(swarm: MemorySwarm) -> None:
    swarm.cut_off.add("me")
    await other_runs.check_run_is_there(MemoryDirectory(swarm, "me", "mpl", ()))
